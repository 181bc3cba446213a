"""torch.nn's own recurrent forward passes, which check, unpack and permute, with our kernels.

They reach torch's kernels through one name, ``_VF``: here it means fastconv.functional, whose
functions have the same names and arguments.
"""

from __future__ import annotations

import types
from typing import Any

import torch.nn.modules.rnn as _rnn

from fastconv import _torch_private as private
from fastconv import functional as _VF

__all__ = ["Compilable", "with_kernels"]


class Compilable:
    """Stands before torch.nn.LSTM, GRU or RNN: torch.compile takes what is built of both."""

    @staticmethod
    def prepare_compiler() -> None:
        """Everything that makes one of these calls it."""
        private.let_compile_recurrent_modules()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.prepare_compiler()
        super().__init__(*arguments, **keywords)

    def __setstate__(self, state: Any) -> None:
        self.prepare_compiler()
        super().__setstate__(state)  # type: ignore[misc]


def with_kernels(forward: Any) -> Any:
    """The same function, except that the names of this module are its globals."""
    names = globals()
    for name, value in vars(_rnn).items():
        names.setdefault(name, value)
    copy = types.FunctionType(
        forward.__code__, names, "forward", forward.__defaults__, forward.__closure__
    )
    copy.__doc__ = "As torch.nn's, with fastconv's kernels."
    copy.__annotations__ = dict(forward.__annotations__)
    return copy


assert _VF is not None
