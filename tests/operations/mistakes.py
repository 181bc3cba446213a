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


def mostly(right, wrong):
    """Four times in five what is right: else no call of many arguments ever is."""
    return strategies.one_of(right, right, right, right, wrong)


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


def exception_of(function, *args, **kwargs) -> Exception | None:
    """What a call raises; None if it returns."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    return None
