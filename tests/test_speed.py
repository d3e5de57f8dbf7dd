"""What a training says beside its losses: learning rates, speed, share of the peak, traces."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from get.errors import InputError
from pipeline.jobs.beside import Beside
from pipeline.jobs.metrics import Metrics
from pipeline.recipes import RECIPES
from pipeline.recipes.architectures import GETModel
from pipeline.recipes.recipe import students
from pipeline.recipes.settings_make import TrainingConfig
from pipeline.training.peaks import ideal_seconds, peak, step_macs
from pipeline.training.step_cost import step_cost

from .processes import completed
from .runs import STEPS, metrics, writing

SMOKE, MANIFEST = students(RECIPES)["smoke"], RECIPES["smoke"].manifest()


def test_a_run_logs_the_rate_of_each_optimiser_its_speed_and_memory(train, pairs, tmp_path):
    run = tmp_path / "run"
    command = run, "--pairs", pairs, "--optimizer", "muon", "--lr_scheduler", "linear"
    train(*command, at=writing(8))
    completed(train(*command))  # rates are right after a resume too
    lines = [line for line in metrics(run) if "loss" in line]
    for step, line in enumerate(lines):
        # two steps of warm-up, then a line down to 0
        factor = step / 2 if step < 2 else (STEPS - step) / (STEPS - 2)
        assert line["learning_rate"] == pytest.approx(2e-3 * factor)
        assert line["muon_learning_rate"] == pytest.approx(2e-2 * factor)
    speed = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in speed] == [*range(1, STEPS + 1)]
    assert all(line["images_per_second"] > 0 for line in speed)
    assert all(2**26 < line["peak_bytes"] < 2**36 for line in speed)
    assert all("of_peak" not in line for line in speed)  # nobody knows that of a CPU


def test_the_share_of_the_peak_is_the_time_at_the_peak_over_the_time_of_a_step(tmp_path):
    config = TrainingConfig(output_dir=tmp_path, max_train_steps=4, log_steps=2)
    metrics = Metrics(config, Accelerator(), None, Beside(), ideal_seconds=0.01)
    for step in range(4):
        metrics.record(step, loss=torch.tensor(1.0))
    for line in map(json.loads, (tmp_path / "speed.jsonl").read_text().splitlines()):
        seconds = config.global_batch_size / line["images_per_second"]
        assert line["of_peak"] == pytest.approx(0.01 / seconds)


@pytest.mark.parametrize(
    ("name", "bf16", "tf32"),
    [
        ("NVIDIA H200", 989.4, 494.7),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA H100 PCIe", 756.5, 378.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0),
        ("NVIDIA A10G", 125.0, 62.5),
    ],
)
def test_peaks_are_those_of_the_datasheets_in_multiply_accumulates(name, bf16, tf32):
    assert (peak(name, "bf16"), peak(name, "no")) == (bf16 * 5e11, tf32 * 5e11)


def test_the_peak_of_an_unknown_gpu_is_not_known():
    assert peak("NVIDIA GeForce RTX 3090", "bf16") is None
    assert peak("NVIDIA RTX A1000", "bf16") is None
    assert ideal_seconds(SMOKE, MANIFEST, 1, torch.device("cpu")) is None


def test_the_work_of_a_step_is_that_of_all_micro_steps_and_of_rollouts_on_average():
    small = GETModel(iterations=1, depth=0, equilibrium_depth=1)
    whole = replace(SMOKE, model=small, window_share=0.0)
    parts = replace(whole, gradient_accumulation_steps=2, gradient_checkpointing=True)
    assert step_macs(whole, MANIFEST, 1) == 2 * step_macs(parts, MANIFEST, 2)
    window = replace(whole, window_share=0.5, window_rollout=(1, 3))
    middle = replace(window, window_rollout=(2, 2))
    assert step_macs(window, MANIFEST, 1) == step_cost(middle, MANIFEST).macs


def test_a_profile_is_a_trace_of_the_steps_asked_for(train, pairs, tmp_path):
    command = "--pairs", pairs, "--max_train_steps", 4, "--profile_steps", 2, 3
    completed(train(tmp_path / "run", *command, processes=2))
    (trace,) = (tmp_path / "run" / "profile").iterdir()  # of the main process alone
    assert trace.name == "steps-2-3.json"
    events = json.loads(trace.read_text())["traceEvents"]
    calls = Counter(e.get("name") for e in events)
    for name in ("aten::_foreach_lerp_", "aten::_fused_adamw_"):  # all weights in one call
        assert 2 <= calls[name] < 10


@pytest.mark.parametrize("steps", [(0, 3), (3, 2), (5, 11)])
def test_steps_that_are_not_trained_cannot_be_profiled(steps):
    with pytest.raises(InputError, match="expected profile_steps that rise, from 1 to 10"):
        TrainingConfig(output_dir=Path(), max_train_steps=10, profile_steps=steps)
