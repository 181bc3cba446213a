"""What the laws need to know of an operation: one small file per operation, named like it.

An operation exists when ``fastconv.reference`` has a module of its name that lists ``CASES``. The
file of the same name in this folder describes it: how it is called through every door, what torch's
own function for it is, and which gradients it has. A law is written once, over ``every_case`` or
``every_operation``; a new operation adds no line to a law.
"""

import importlib
import pkgutil

import pytest
import torch

import fastconv.reference

from .base import Operation


def discover() -> dict[str, Operation]:
    """Describes every operation: a module of ``fastconv.reference`` with CASES and no description
    is an error.
    """
    operations = {}
    for module in pkgutil.iter_modules(fastconv.reference.__path__):
        reference = importlib.import_module(f"fastconv.reference.{module.name}")
        if not hasattr(reference, "CASES"):
            continue
        description = importlib.import_module(f"{__name__}.{module.name}")
        operations[module.name] = description.OPERATION
    assert operations, "fastconv.reference holds no operation"
    return operations


OPERATIONS = discover()


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cases_of(operation: Operation, tag: str | None = None) -> list:
    return [
        pytest.param(operation, case, id=f"{operation.name}-{case.name}")
        for case in operation.cases(tag)
    ]


def every_case(tag: str | None = None):
    """Runs a law on every case of every operation; a tag picks the cases of which it is true."""
    params = [param for operation in OPERATIONS.values() for param in cases_of(operation, tag)]
    return pytest.mark.parametrize(("operation", "case"), params)


def every_operation():
    """Runs a law once per operation."""
    params = [pytest.param(operation, id=name) for name, operation in OPERATIONS.items()]
    return pytest.mark.parametrize("operation", params)


def every_case_and_dtype(differentiable: bool = False):
    """Runs a law on every case in every dtype that the operation (or its gradient) computes
    natively.
    """
    params = [
        pytest.param(operation, case, dtype, id=f"{operation.name}-{case.name}-{name_of(dtype)}")
        for operation in OPERATIONS.values()
        for case in operation.cases()
        for dtype in operation.dtypes
        if dtype.is_floating_point or not differentiable
    ]
    return pytest.mark.parametrize(("operation", "case", "dtype"), params)
