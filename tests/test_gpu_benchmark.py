"""The rehearsal of what is measured on a GPU, how it goes on after a stop, and its tables."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from data.files import write_json
from pipeline.benchmarks import gpu, gpu_jobs, gpu_models, gpu_rows, gpu_table
from pipeline.benchmarks.gpu_rows import GpuConfig
from pipeline.recipes import RECIPES


@pytest.fixture(autouse=True)
def _as_it_was():
    """Compile again afterwards, in the precision of before."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.compiler.set_stance("default")
    torch.set_float32_matmul_precision(precision)


def rows(folder: Path, part: str) -> dict:
    return json.loads((folder / "gpu.json").read_text())["parts"][part]["rows"]


@pytest.mark.parametrize(
    "part",
    ["steps", "sampling", "pairs", "saving"]
    + [pytest.param(part, marks=pytest.mark.slow) for part in ("tests", "training")],
)
def test_every_part_is_rehearsed(part, tmp_path, here):
    done = here("benchmark", "gpu", "--rehearse", "--only", part, "--output_dir", tmp_path)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["rehearsal"] is True
    assert found["parts"][part]["whole"] is True
    assert found["parts"][part]["versions"]["torch"] in torch.__version__
    measured = found["parts"][part]["rows"]
    assert not [name for name, row in measured.items() if isinstance(row.get("failed"), str)]
    if part == "tests":
        assert " tests collected" in measured["all"]["tail"]
    if part == "steps":
        ways = gpu_models.WAYS | gpu_models.OTHERS
        assert [row["way"] for row in measured.values()] == [*ways]
    if part in ("steps", "sampling"):
        known = [row for row in measured.values() if row["macs_per_image"] is not None]
        assert all(row["seconds"] > 0 and 0 < row["of_limit"] < 9 for row in known)
        assert len(known) == len(measured) - 2 * (part == "steps")  # solves
        assert "GET-T/2" in gpu_table.markdown(found)


def test_pairs_are_written_with_the_settings_of_the_recipe():
    recipe = RECIPES["cifar10"].pairs  # rehearsed smaller: the numbers must go together here too
    assert recipe.teacher_batch_size % recipe.pack == 0
    assert gpu_jobs.BATCHES > 1


def test_rows_are_kept_as_they_come_and_one_that_fails_stops_no_other(tmp_path):
    made, config = [], GpuConfig(output_dir=tmp_path)

    def row(name: str) -> gpu_rows.Figures:
        made.append(name)
        if name == "b":
            raise torch.OutOfMemoryError("too little")
        if name == "c" and made.count("c") == 1:
            raise KeyboardInterrupt
        return {"seconds": 1.0}

    measures = {name: lambda name=name: row(name) for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        gpu_rows.measure(config, "steps", measures)
    assert rows(tmp_path, "steps").keys() == {"a", "b"}
    assert not gpu_rows.found(config, "steps")["whole"]
    gpu_rows.measure(config, "steps", measures)
    assert made == [*"abcdc"]  # the one that was stopped comes last
    assert gpu_rows.found(config, "steps")["whole"]
    assert rows(tmp_path, "steps")["b"] == {"failed": "OutOfMemoryError: too little"}
    gpu_rows.measure(config, "pairs", {"x": lambda: {}})
    assert rows(tmp_path, "steps").keys() == {*"abcd"}
    assert gpu_rows.found(GpuConfig(output_dir=tmp_path, rehearse=True), "steps")["rows"] == {}


def test_a_part_that_takes_too_long_is_stopped_with_all_it_has_started(tmp_path):
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""
    command, began = [sys.executable, "-c", code, str(tmp_path / "child")], time.monotonic()
    assert gpu.run_for(command, 2.0) is None
    assert time.monotonic() - began < 30
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # an orphan is reaped by another process
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("it lives on")
    assert gpu.run_for([sys.executable, "-c", "raise SystemExit(3)"], 60.0) == 3


def test_every_part_gets_a_first_go_and_what_is_left_goes_on(tmp_path, monkeypatch):
    started = []
    known = {"rows": {"a": {"failed": "x"}}, "begun": None, "whole": False}
    parts = {"tests": {**known, "whole": True}, "steps": known}
    write_json(tmp_path / "gpu.json", {"rehearsal": True, "parts": parts})

    def run_for(command: list[str], seconds: float) -> int:
        started.append((command[-1], seconds))
        return len(started) - 1

    monkeypatch.setattr(gpu, "run_for", run_for)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu"])
    gpu.main(GpuConfig(output_dir=tmp_path, rehearse=True))
    new = ["sampling", "pairs", "saving", "training"]
    assert [part for part, _ in started] == [*new, "steps", *new]
    assert all(0 < seconds <= 14 * 60 for _, seconds in started)
    assert sum(gpu.SHARES.values()) <= 14 * 60
    assert gpu.SHARES.keys() == gpu.PARTS.keys()


def step(way: str, rate: float, of_peak: float | None, size: str = "GET-B/2") -> dict:
    row = {"size": size, "batch": 128, "way": way, "images_per_second": rate, "of_peak": of_peak}
    return {**row, "of_limit": 0.6, "peak_bytes": 2**30}


def test_the_table_says_which_bars_are_met():
    measured = {
        "steps": {
            "a": step("TF32, torchdeq", 250.0, 0.1),
            "b": step("TF32", 300.0, 0.1),
            "c": step("bf16, compiled", 1100.0, 0.52),
            "d": step("bf16, checkpointed", 5000.0, 0.9),  # not a usual way
            "e": {"failed": "OutOfMemoryError: too little"},
        },
        "tests": {
            "all": {"tests": 3, "skipped": 0, "failed": {"test_y": "no\nwhy"}, "exit_code": 1}
        },
        "pairs": {"float32": {"overhead": 0.021}},
        "saving": {"GET-B/2": {"ratio": {"beside": 2.5}}},
        "training": {
            "pairs": {"seconds": 9.0},
            "photos": {
                "seconds": 99.0,
                "images_per_second": 1e4,
                "last": [{"step": 8, "validation_l1": 0.25}, {"step": 9, "loss": 0.5}],
            },
        },
    }
    where = {
        "hardware": {"gpus": ["NVIDIA H200"], "cpu": "x"},
        "versions": {"torch": "2.11.0"},
        "commit": "abc",
    }
    parts = {k: {"rows": v, "whole": k != "steps", **where} for k, v in measured.items()}
    result = {"rehearsal": False, "parts": parts}
    lines = gpu_table.markdown(result).splitlines()
    assert lines[0] == "NVIDIA H200, torch 2.11.0, commit abc"
    ends = {line.split(" | ")[0][2:]: line.split(" | ")[-1][:-2] for line in lines[4:12]}
    assert ends["tests marked gpu"] == "MISSED"
    assert ends["GET-B/2, batch 128, training step: over the paper's way, eager in TF32"] == "met"
    assert ends["GET-B/2, batch 128, of the peak of bf16"] == "met"
    assert ends["sampling: of the limit of matrix products"] == "not measured"
    assert ends["writing pairs: over the teacher alone, float32"] == "met"
    assert ends["GET-B/2, a step that saves a checkpoint, over a usual one"] == "MISSED"
    assert any("4.40x (bf16, compiled over TF32, torchdeq)" in line for line in lines)
    assert "| photos | 99 | 10,000 | - | l1 0.25 |" in lines
    assert lines[-4:] == [
        "- steps, e: OutOfMemoryError: too little",
        "- tests, test_y: no",
        "- steps: not whole; the same command goes on",
        "- sampling: not whole; the same command goes on",
    ]


def test_what_was_not_measured_or_only_rehearsed_meets_no_bar():
    nothing = gpu_table.markdown({"rehearsal": False, "parts": {}})
    assert nothing.count("not measured") == 6
    assert nothing.count("not whole") == len(gpu.PARTS)
    for tests, skipped, end in ((0, 0, "- | not measured"), (3, 1, "2 of 3 | MISSED")):
        row = {"tests": tests, "skipped": skipped, "failed": {}, "exit_code": 0}
        result = {"rehearsal": True, "parts": {"tests": {"rows": {"all": row}}}}
        lines = gpu_table.markdown(result).splitlines()
        assert lines[0] == "A rehearsal: its figures mean nothing."
        assert f"| tests marked gpu | all pass | {end} |" in lines


def test_without_a_gpu_only_a_rehearsal_runs(here, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here is one")
    refused = here("benchmark", "gpu", "--output_dir", tmp_path)
    assert refused.code == 2
    assert "expected a GPU, got none; --rehearse" in refused.err
