"""Law: bench/gpu.sh, for which a machine with a GPU has but minutes, can be walked without one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import native
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "bench/gpu.sh"
FAMILIES = ("pool", "conv_transpose2d", "conv2d")
PARTS = ("laws", "sanitize", "bench:overhead", *(f"bench:{family}" for family in FAMILIES))


def walk(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the script on what is installed: the part `build` has its own run in CI."""
    native.core()
    if shutil.which("bash") is None or shutil.which("timeout") is None:
        pytest.skip("bench/gpu.sh needs bash and timeout")
    (folder / "work/site/fastconv").mkdir(parents=True, exist_ok=True)
    for name in ("expecttest", "hypothesis", "ml_dtypes", "yaml"):  # a GPU machine has none of them
        (folder / f"work/site/{name}.py").write_text("raise ImportError('not on this machine')\n")
    places = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    return subprocess.run(
        ["bash", str(SCRIPT), *places, *arguments],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def states(folder: Path) -> dict[str, str]:
    lines = (folder / "work/parts.tsv").read_text().splitlines()
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def test_every_part_is_rehearsed(tmp_path):
    ran = walk(tmp_path, "--dry-run", *PARTS)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert states(tmp_path) == dict.fromkeys(PARTS, "not yet run")
    assert "dry run: nothing is recorded" in ran.stdout
    assert not list((tmp_path / "out").iterdir()), "no figure is ever guessed"
    for name in FAMILIES:
        record = json.loads((tmp_path / f"work/bench-{name}.json").read_text())
        assert record["failed"] == 0
        assert record["rows"]


def test_a_part_that_fails_loses_no_other(tmp_path):
    """torch cannot be imported: every part fails, and every one is tried and reported."""
    (tmp_path / "torch.py").write_text("raise ImportError('planted')\n")
    (tmp_path / "work/site/fastconv").mkdir(parents=True)
    shutil.copy(tmp_path / "torch.py", tmp_path / "work/site/torch.py")
    ran = walk(tmp_path, "--dry-run", "laws", "bench:overhead")
    assert ran.returncode != 0
    assert states(tmp_path) == {"laws": "failed", "bench:overhead": "failed"}
    assert "planted" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench:lstm9"], "bench:lstm9: expected one of"),
        (["--seconds", "ten"], "--seconds: expected a whole number, got 'ten'"),
        (["--out"], "--out: expected a value"),
    ],
)
def test_wrong_arguments_are_told(tmp_path, arguments, said):
    ran = walk(tmp_path, *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
