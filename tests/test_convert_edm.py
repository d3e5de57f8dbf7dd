"""`python -m pipeline.convert edm`: from an NVlabs pickle to a folder, or one line of refusal."""

from pathlib import Path

import pytest

from data.teachers.edm.checkpoint import open_checkpoint
from data.teachers.settings import Sampler

from .edm_files import SYSTEM, tiny, write, write_kind
from .edm_files import _nothing_was_executed as _nothing_was_executed
from .edm_files import pkl as pkl
from .processes import Script, completed

FEW = Sampler(steps=3)


def test_convert_writes_a_whole_folder_and_refuses_to_replace_one(pkl, here):
    write_kind(pkl, "ve in VE")
    out = pkl.parent / "new" / "out"
    assert "tensors of a VEPrecond" in completed(here("convert", "edm", pkl, out)).out
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    first, second = (open_checkpoint(path, FEW, "cpu") for path in (pkl, out))
    assert first.fingerprint == second.fingerprint
    refused = here("convert", "edm", pkl, out)
    assert refused.code == 2
    assert "convert: expected nothing at" in refused.err


@pytest.mark.parametrize(
    "content", [lambda: SYSTEM, lambda: {"ema": 1}, tiny], ids=["a trap", "no network", "too small"]
)
def test_convert_says_in_one_line_what_is_wrong_and_leaves_nothing(pkl, here, content):
    write(pkl, content)
    refused = here("convert", "edm", pkl, pkl.parent / "out")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert [p.name for p in pkl.parent.iterdir()] == ["network.pkl"]


def test_convert_runs_as_a_module(pkl: Path, script: Script) -> None:
    write_kind(pkl, "vp in EDM")
    completed(script("pipeline.convert", "edm", pkl, pkl.parent / "out"))
    assert open_checkpoint(pkl.parent / "out", FEW, "cpu").num_classes is None
