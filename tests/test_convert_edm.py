"""`python -m pipeline.convert edm`: from an NVlabs pickle to a folder, or one line of refusal."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.teachers.edm.checkpoint import open_checkpoint
from data.teachers.settings import Sampler
from pipeline import cli
from pipeline.convert import CONVERSIONS, main

from .edm_files import SYSTEM, tiny, write, write_kind
from .edm_files import _nothing_was_executed as _nothing_was_executed
from .edm_files import pkl as pkl

ROOT = Path(__file__).parents[1]
FEW = Sampler(steps=3)


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    try:
        cli.run(main, lambda recipes: CONVERSIONS)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_convert_writes_a_whole_folder_and_refuses_to_replace_one(
    pkl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kind(pkl, "ve in VE")
    out = pkl.parent / "new" / "out"
    assert convert(monkeypatch, "edm", pkl, out) == 0
    assert "tensors of a VEPrecond" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    fingerprints = {open_checkpoint(path, FEW, "cpu").fingerprint for path in (pkl, out)}
    assert len(fingerprints) == 1
    assert convert(monkeypatch, "edm", pkl, out) == 2
    assert "convert: expected nothing at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [lambda: SYSTEM, lambda: {"ema": 1}, tiny], ids=["a trap", "no network", "too small"]
)
def test_convert_says_in_one_line_what_is_wrong_and_leaves_nothing(
    pkl: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: Callable[[], object],
) -> None:
    write(pkl, content)
    assert convert(monkeypatch, "edm", pkl, pkl.parent / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in pkl.parent.iterdir()] == ["network.pkl"]


def test_convert_runs_as_a_module(pkl: Path) -> None:
    write_kind(pkl, "vp in EDM")
    subprocess.run(
        [sys.executable, "-m", "pipeline.convert", "edm", str(pkl), str(pkl.parent / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    assert open_checkpoint(pkl.parent / "out", FEW, "cpu").num_classes is None
