"""Law: what the documentation shows, runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from subprocesses import check_python

import fastconv

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    found = ["fastconv"]
    for module in pkgutil.walk_packages(fastconv.__path__, "fastconv."):
        path = Path(module.module_finder.path, *module.name.rpartition(".")[2:])
        if not path.name.startswith("_") and (path.is_dir() or path.with_suffix(".py").is_file()):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    before = fastconv.backend()
    try:
        results = doctest.testmod(
            module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        )
    finally:
        fastconv.backend(before)
    assert results.failed == 0


def public_functions() -> list:
    names = [(fastconv, name) for name in getattr(fastconv, "__all__", [])]
    names += [(fastconv.functional, name) for name in getattr(fastconv.functional, "__all__", [])]
    found = {getattr(module, name) for module, name in names if callable(getattr(module, name))}
    return sorted(found, key=lambda thing: thing.__qualname__)


@pytest.mark.parametrize("thing", public_functions(), ids=lambda thing: thing.__qualname__)
def test_public_names_are_documented_with_an_example(thing):
    text = thing.__doc__ or ""
    assert text.strip(), "no docstring"
    assert ">>>" in text, "no runnable example"


def python_blocks(name: str) -> list[str]:
    path = ROOT / name
    if not path.is_file():
        return []
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


PAGES = ("README.md", "CONTRIBUTING.md")


@pytest.mark.parametrize(
    ("page", "number"), [(p, n) for p in PAGES for n in range(len(python_blocks(p)))]
)
def test_python_blocks_run(page, number, tmp_path):
    """Each block after those before it, as a reader would type them."""
    blocks = python_blocks(page)[: number + 1]
    check_python("import os\nos.chdir(" + repr(str(tmp_path)) + ")\n" + "\n".join(blocks))


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_that_exist(page):
    path = ROOT / page
    if not path.is_file():
        pytest.skip(f"{page} is not written yet")
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text()):
        assert (ROOT / target).exists(), f"{page} links to {target}"
