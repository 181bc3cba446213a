"""Wrong calls: those that somebody has thought of, and random ones that nobody has."""

from typing import Any

import torch

try:
    import hypothesis
    from hypothesis import strategies
except ImportError:  # a machine with a GPU and little else, where no random calls are drawn
    hypothesis = strategies = None


class WrongCall:
    """A call that must raise: its mistake in words, and what differs from the right call.

    A function among the changes makes the wrong argument from the right one. `raises` is the type
    of the exception, None for the one that torch's own function raises.
    """

    def __init__(self, mistake: str, raises: type[Exception] | None = None, **change: Any):
        self.mistake, self.raises, self.change = mistake, raises, change

    def __str__(self) -> str:
        return self.mistake

    def applied(self, right: dict[str, Any]) -> dict[str, Any]:
        """The right call with the mistake in it."""
        changed = {
            name: value(right.get(name)) if callable(value) else value
            for name, value in self.change.items()
        }
        return right | changed


def wrong_tensors(name: str) -> list[WrongCall]:
    """Mistakes that can be made with every tensor of every operation."""
    return [
        WrongCall(f"{name} is a number", **{name: 1}),
        WrongCall(f"{name} is a string", **{name: "tensor"}),
        WrongCall(f"{name} is a list of numbers", **{name: [1.0, 2.0]}),
        WrongCall(f"{name} is an object", **{name: object()}),
        WrongCall(f"{name} has six axes", **{name: lambda t: t[None, None]}),
        WrongCall(f"{name} has no axes", **{name: lambda t: t.flatten()[0]}),
        WrongCall(f"{name} is of booleans", **{name: lambda t: t > 0}),
    ]


def wrong_pairs(name: str) -> list[WrongCall]:
    """Mistakes that can be made with every argument that is one number or two."""
    return [
        WrongCall(f"{name} is negative", **{name: -1}),
        WrongCall(f"{name} is very negative", **{name: -(2**63)}),
        WrongCall(f"{name} is negative on one axis", **{name: (1, -1)}),
        WrongCall(f"{name} has three numbers", **{name: (1, 1, 1)}),
        WrongCall(f"{name} has four numbers", **{name: [1, 1, 1, 1]}),
        WrongCall(f"{name} is a float", **{name: 1.0}),
        WrongCall(f"{name} holds a float", **{name: (1, 1.5)}),
        WrongCall(f"{name} is a word", **{name: "two"}),
        WrongCall(f"{name} is a boolean", **{name: True}),
        WrongCall(f"{name} is a dictionary", **{name: {}}),
        WrongCall(f"{name} is an object", **{name: object()}),
        WrongCall(f"{name} holds None", **{name: (1, None)}),
        WrongCall(f"{name} is beyond 64 bits", **{name: 2**64}),
    ]


def wrong_images() -> list[WrongCall]:
    """Mistakes in what is pooled, an image of [2, 4, 8, 9]."""
    return [
        *wrong_tensors("input"),
        WrongCall("no input", input=None),
        WrongCall("input of two axes", input=lambda x: x[0, 0]),
        WrongCall("input of five axes", input=lambda x: x[None]),
        WrongCall("no channels", input=torch.ones(2, 0, 8, 9)),
        WrongCall("no rows", input=torch.ones(2, 4, 0, 9)),
        WrongCall("no columns", input=torch.ones(2, 4, 8, 0)),
        WrongCall("unbatched and no channels", input=torch.ones(0, 8, 9)),
        WrongCall("empty batch without channels", input=torch.ones(0, 0, 8, 9)),
        WrongCall("complex input", input=lambda x: x.cfloat()),
    ]


def wrong_windows() -> list[WrongCall]:
    """Mistakes in the window that slides over it, 3x3 with stride 2 and padding 1."""
    return [
        *(w for name in ("kernel_size", "stride", "padding") for w in wrong_pairs(name)),
        WrongCall("no kernel_size", kernel_size=None),
        WrongCall("kernel_size of zero", kernel_size=0),
        WrongCall("kernel_size of zero on one axis", kernel_size=(0, 3)),
        WrongCall("kernel_size of zero, stride left out", kernel_size=0, stride=None),
        WrongCall("kernel_size of no numbers", kernel_size=[]),
        WrongCall("window larger than the input", kernel_size=12),
        WrongCall("huge kernel_size", kernel_size=2**62),
        WrongCall("kernel_size of 2^31", kernel_size=2**31),
        WrongCall("stride of zero", stride=0),
        WrongCall("stride of zero on one axis", stride=(2, 0)),
        WrongCall("huge stride", stride=2**62),
        WrongCall("padding of more than half a window", padding=2),
        WrongCall("padding of more than half a window on one axis", padding=(0, 2)),
        WrongCall("huge padding", padding=2**62),
        WrongCall("huge padding and kernel_size", kernel_size=2**62, padding=2**61),
        WrongCall("ceil_mode is a number", ceil_mode=1),
        WrongCall("ceil_mode is a word", ceil_mode="yes"),
        WrongCall("ceil_mode is None", ceil_mode=None),
    ]


def mostly(right, wrong):
    """Four times in five what is right: else no call of many arguments ever is.

    Not by one_of, which takes what stands there twice for one.
    """
    return strategies.sampled_from(range(5)).flatmap(lambda i: wrong if i == 4 else right)


def random_pair(right, anything):
    """A number or two of them, and now and then something that is neither."""
    return mostly(
        strategies.one_of(right, strategies.tuples(right, right)),
        strategies.one_of(
            anything,
            strategies.lists(anything, max_size=3),
            strategies.sampled_from([None, 1.0, True, "same", (1, 2.0)]),
        ),
    )


def random_tensor(shape, dtypes):
    """A tensor of small whole numbers: every sum is exact in every dtype."""
    return strategies.builds(
        lambda sizes, dtype, seed: torch.randint(
            -3, 4, tuple(sizes), generator=torch.Generator().manual_seed(seed)
        ).to(dtype),
        shape,
        strategies.sampled_from(dtypes),
        strategies.integers(0, 99),
    )


def random_images(dtypes):
    """Mostly 3-d or 4-d tensors of some size in each of their axes."""
    extents, any_sizes = strategies.integers(4, 9), strategies.integers(0, 7)
    shapes = strategies.tuples(
        strategies.integers(0, 2), strategies.integers(1, 3), extents, extents
    )
    odd = strategies.lists(any_sizes, min_size=2, max_size=5)
    return random_tensor(mostly(shapes, odd), dtypes)


def random_windows() -> dict[str, Any]:
    """Strategies for the arguments that slide a window over an image."""
    one_to_three, anything = strategies.integers(1, 3), strategies.integers(-1, 4)
    return {
        "kernel_size": random_pair(one_to_three, anything),
        "stride": random_pair(one_to_three, anything),
        "padding": random_pair(strategies.integers(0, 1), anything),
        "ceil_mode": mostly(strategies.booleans(), strategies.sampled_from([1, None])),
    }


def exception_of(function, *args, **kwargs) -> Exception | None:
    """What a call raises; None if it returns."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    return None
