"""torch, if it is there, and every private name of it that fastconv uses, each with what replaces
it when it is gone.

Checked on torch 2.10, 2.13 and 2.15. ``torch`` is None when it is not installed or
``FASTCONV_TORCH=0``: then the NumPy side of fastconv works alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch as torch
    import torch.autograd.forward_ad as forward_ad

    HAS_TORCH = True
else:
    torch: ModuleType | None = None
    if os.environ.get("FASTCONV_TORCH", "1") != "0":
        with contextlib.suppress(ModuleNotFoundError):
            import torch
            import torch.autograd.forward_ad as forward_ad
    HAS_TORCH = torch is not None


Function = TypeVar("Function", bound=Callable[..., Any])


def _never() -> bool:
    return False


def _private(name: str, otherwise: Any) -> Any:
    return getattr(torch._C, name, otherwise) if HAS_TORCH else otherwise


def _any_requires_grad_slowly(*values: Any) -> bool:
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


functorch_is_active: Callable[[], bool] = _private("_are_functorch_transforms_active", _never)
autocast_is_active: Callable[[], bool] = _private("_is_any_autocast_enabled", _never)
dispatch_modes: Callable[[], int] = _private("_len_torch_dispatch_stack", _never)
is_tracing: Callable[[], bool] = _private("_is_tracing", _never)
any_requires_grad: Callable[..., bool] = _private("_any_requires_grad", _any_requires_grad_slowly)
# Without the guard the op's Autograd kernel runs, to no effect: slower, not wrong.
BelowAutograd: Callable[[], contextlib.AbstractContextManager[Any]] = _private(
    "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


# Forward-mode differentiation is on (outside of functorch) while FORWARD_AD[LEVEL] >= 0.
# A look into the module's names: a function of our own would cost three times as much.
LEVEL = "_current_level"
FORWARD_AD: dict[str, Any] = vars(forward_ad) if HAS_TORCH else {}
if LEVEL not in FORWARD_AD:
    FORWARD_AD = {LEVEL: -1}


def plain_function() -> Any:
    """The base of an autograd.Function that is called outside of functorch: its ``apply`` is C++
    alone.

    ``Function.apply`` adds 1.5 us to every call (torch 2.13) for the functorch cases.
    """
    return getattr(torch.autograd.function, "_SingleLevelFunction", torch.autograd.Function)


def raw_call(overload: Any) -> Callable[..., Any]:
    """The C function behind an ``OpOverload``: saves one Python frame per call."""
    return getattr(overload, "_op", overload)  # type: ignore[no-any-return]


@contextlib.contextmanager
def without_autocast(device_type: str) -> Iterator[None]:
    """Calls inside skip the Autocast kernels of that device."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type}")
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        yield


def is_symbol(value: Any) -> bool:
    """Whether it is an int that torch will know only when a traced program runs."""
    return HAS_TORCH and isinstance(value, torch.SymInt)


def constant_when_traced(function: Function) -> Function:
    """``torch.compiler.assume_constant_result`` without its import of the compiler: torch.compile
    asks the function once, while it traces, and looks at nothing inside of it."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def cpu_kernel(name: str) -> Callable[..., Any]:
    """The kernel that serves an op for CPU tensors now, whatever is registered later."""
    get_kernel: Any = torch.library.get_kernel
    kernel, keys = get_kernel(name, "CPU"), torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def call(*arguments: Any) -> Any:
        return kernel.call_boxed(keys, *arguments)

    return call


def let_compile_recurrent_modules() -> None:
    """torch.compile refuses to look at torch.nn.LSTM, GRU, RNN and whatever is derived from them,
    lest it unroll them; ours are one op each. What it asks is a setting of torch._dynamo, whose
    import takes seconds: it is set when somebody else imports it.
    """
    name = "torch._dynamo.config"
    if name in sys.modules:
        sys.modules[name].allow_rnn = True  # type: ignore[attr-defined]
    elif not any(isinstance(finder, _SettingAtImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SettingAtImport(name, "allow_rnn", True))


class _SettingAtImport:
    """Sets an attribute of a module as soon as that is imported."""

    def __init__(self, module: str, attribute: str, value: Any) -> None:
        self._module, self._attribute, self._value = module, attribute, value

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Python asks this of every module that is imported."""
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                setattr(module, self._attribute, self._value)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def new_library(namespace: str, kind: str) -> Any:
    """``torch.library.Library``, which has no types."""
    library: Any = torch.library.Library
    return library(namespace, kind)


class KernelTable:
    """Python kernels registered over the compiled ones, for as long as the object is not closed."""

    def __init__(self, namespace: str) -> None:
        self._library = new_library(namespace, "IMPL")

    def register(self, name: str, kernel: Callable[..., Any], key: str) -> None:
        """Makes ``kernel`` serve the op ``name`` for tensors of dispatch key ``key``."""
        with (
            warnings.catch_warnings()
        ):  # torch warns that a kernel hides another: that is what we want
            warnings.simplefilter("ignore")
            self._library.impl(name, kernel, key)

    def close(self) -> None:
        """The kernels below serve again."""
        destroy = getattr(self._library, "_destroy", None)
        if destroy is not None:
            destroy()
        del self._library
