"""Set up before fastconv is imported: outputs born NaN, fixed seeds, what a machine lacks said in
words.
"""

import os
import sys

os.environ["FASTCONV_POISON"] = "1"  # fresh outputs are 0xFF bytes: an element never written is NaN

import numpy as np
import pytest
import torch

try:
    import hypothesis
except ImportError:  # see operations/mistakes.py
    pass
else:
    hypothesis.settings.register_profile("fastconv", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("fastconv")


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(
            1
        )  # the workers share the cores; test_threads asks for more by itself
    config.addinivalue_line("markers", "cuda: needs a CUDA device; skipped where there is none")
    config.addinivalue_line(
        "markers", "slow: needs minutes or many gigabytes; runs with FASTCONV_SLOW=1"
    )


def pytest_collection_modifyitems(items):
    reasons = {}
    if not torch.cuda.is_available():
        reasons["cuda"] = "this machine has no CUDA device that torch can use"
    if os.environ.get("FASTCONV_SLOW") != "1":
        reasons["slow"] = "takes minutes or many gigabytes: set FASTCONV_SLOW=1 to run it"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seeds():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """A compiled graph of one test must not serve another, nor count against its limit."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
