"""The rehearsal of what is measured on a GPU."""

import json
import sys

import pytest
import torch

from pipeline.benchmarks import gpu


@pytest.fixture(autouse=True)
def _as_it_was():
    """Compile again afterwards, in the precision of before."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.compiler.set_stance("default")
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    "part", ["steps", "sampling", "pairs", pytest.param("training", marks=pytest.mark.slow)]
)
def test_every_part_is_rehearsed(part, tmp_path, here):
    done = here("benchmark", "gpu", "--rehearse", "--only", part, "--output_dir", tmp_path)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / f"gpu-{part}.json").read_text())
    assert found["rehearsal"] is True
    if part == "steps":
        assert [r["way"] for r in found["rows"]] == [
            "TF32", "bf16", "bf16, compiled", "bf16, CUDA graphs", "bf16, checkpointed",
            "bf16, phantom",
        ]  # fmt: skip
    if part in ("steps", "sampling"):
        assert all(r["seconds"] > 0 and 0 < r["of_limit"] < 2 for r in found["rows"])
        assert "GET-T/2" in gpu.markdown(tmp_path)


def test_parts_that_are_done_are_left_and_one_that_fails_stops_no_other(tmp_path, monkeypatch):
    (tmp_path / "gpu-pairs.json").write_text('{"rehearsal": true}')
    (tmp_path / "gpu-training.json").write_text('{"rehearsal": false}')  # of another kind
    started = []

    def run(command, timeout, check):
        started.append(command[-1])
        return gpu.subprocess.CompletedProcess(command, len(started) - 1)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu"])
    gpu.main(gpu.GpuConfig(output_dir=tmp_path, rehearse=True))
    assert started == ["tests", "steps", "sampling", "training"]
    started.clear()
    gpu.main(gpu.GpuConfig(output_dir=tmp_path, rehearse=True, minutes=1, parts=("steps",)))
    assert started == ["steps"]


def test_without_a_gpu_only_a_rehearsal_runs(here, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here is one")
    refused = here("benchmark", "gpu", "--output_dir", tmp_path)
    assert refused.code == 2
    assert "expected a GPU, got none; --rehearse" in refused.err
