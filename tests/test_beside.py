"""Checkpoints are written beside the steps: what is saved, what waits, and where errors go."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from pipeline.benchmarks import saving
from pipeline.cli import Failed
from pipeline.jobs.beside import Beside
from pipeline.jobs.host_copy import HostCopy, TrainState
from pipeline.jobs.run import Run, finished

from .runs import checkpoints
from .test_run import config, fresh_state

NOTHING = torch.tensor(0.0)


def train(
    folder: Path,
    save: Callable[[Path, nn.Module], object],
    at_step: Callable[[int, nn.Module], torch.Tensor | None] = lambda step, model: None,
) -> list[torch.Tensor]:
    """Add 1 to all weights in each of six steps; return the weights after each."""
    state, seen = fresh_state(), []
    model = state.modules["model"]
    with Run(config(folder), Accelerator()) as run:
        for step in run.steps(run.restore(state), state, save):
            for parameter in model.parameters():
                parameter.data += 1
            seen.append(model.get_parameter("weight").detach().clone())
            run.record(step, loss=at_step(step, model) or NOTHING)
    return seen


def test_steps_go_on_while_a_checkpoint_is_written_as_it_was(tmp_path):
    reached = Event()

    def save(folder: Path, model: nn.Module) -> None:
        assert reached.wait(60)  # step 4 is made while checkpoint 2 is written

    def at_step(step: int, model: nn.Module) -> None:
        if step == 3:
            assert checkpoints(tmp_path / "run") == []
            reached.set()

    seen = train(tmp_path, save, at_step)
    assert finished(tmp_path / "run")
    for step in (4, 6):
        folder = tmp_path / "run" / "checkpoints" / f"checkpoint-{step}" / "state"
        assert torch.equal(load_file(folder / "model.safetensors")["weight"], seen[step - 1])


def test_the_result_gets_the_averaged_weights_of_its_step(tmp_path):
    state = fresh_state()
    weight = state.modules["ema"].get_parameter("weight")
    copy = HostCopy(state)
    with torch.no_grad():
        weight.fill_(3)
        copy.take()
        weight.fill_(4)
    assert isinstance(copy.average, nn.Linear)
    assert (copy.average.weight == 3).all()
    assert copy.average.weight.data_ptr() == copy.files["ema"]["weight"].data_ptr()
    assert not copy.average.weight.requires_grad
    assert (weight == 4).all()


@pytest.mark.gpu
def test_a_copy_from_a_gpu_is_pinned_and_of_its_moment_though_nobody_waits():
    model = nn.Linear(4096, 4096, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 4096, device="cuda")).sum().backward()
    optimizer.step()
    copy = HostCopy(TrainState({"ema": model}, {"optimizer": optimizer}, ()))
    with torch.no_grad():
        model.weight.fill_(3)
        copy.take()
        model.weight.fill_(4)
    copy.wait()
    assert (copy.files["ema"]["weight"] == 3).all()
    assert all(x.is_pinned() for tensors in copy.files.values() for x in tensors.values())
    assert copy.average.get_parameter("weight").device.type == "cpu"


def full(folder: Path, model: nn.Module) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def test_a_checkpoint_that_cannot_be_written_ends_the_training_at_the_next_step(tmp_path):
    steps = []
    with pytest.raises(Failed, match=r"No space left on device; the last good .* none;"):
        train(tmp_path, full, lambda step, model: steps.append(step))
    assert steps[-1] < 5
    assert checkpoints(tmp_path / "run") == []


def test_the_last_checkpoint_that_cannot_be_written_ends_the_training_too(tmp_path):
    def save(folder: Path, model: nn.Module) -> None:
        if "checkpoint-6" in folder.name:
            full(folder, model)

    with pytest.raises(Failed, match=r"No space left on device; the last good .*checkpoint-4;"):
        train(tmp_path, save)
    assert not finished(tmp_path / "run")


def test_a_run_that_fails_waits_for_its_checkpoint_and_says_if_that_fails_too(tmp_path, capsys):
    failing = Event()

    def save(folder: Path, model: nn.Module) -> None:
        assert failing.wait(60)
        full(folder, model)

    def at_step(step: int, model: nn.Module) -> torch.Tensor | None:
        if step < 2:
            return None
        failing.set()
        return torch.tensor(float("nan"))

    with pytest.raises(Failed, match="expected finite values, got loss nan in step 3"):
        train(tmp_path, save, at_step)
    assert "none; a later one could not be written: " in capsys.readouterr().out


def test_work_beside_is_done_in_order_and_an_error_is_raised_once():
    done, beside = [], Beside()
    for i in range(3):
        beside.start(lambda i=i: done.append(i))
    beside.settle()
    assert done == [0, 1, 2]
    beside.start(lambda: 1 / 0)
    beside.settle()
    with pytest.raises(ZeroDivisionError):
        beside.check()
    beside.check()
    assert beside.end() is None
    beside = Beside()
    beside.start(lambda: 1 / 0)
    assert isinstance(beside.end(), ZeroDivisionError)


def test_the_benchmark_says_what_a_step_that_saves_costs(tmp_path, capsys):
    tiny = saving.SavingConfig(output_dir=tmp_path, size="GET-T/2", image_size=4, repeats=1)
    saving.main(replace(tiny, recipe="smoke"))
    found = json.loads((tmp_path / "saving.json").read_text())["students"]
    for student in found.values():
        assert student["bytes"] > 12 * student["parameters"]
        for way, ratio in student["ratio"].items():
            (took,), (usual,) = student["seconds"][way], student["seconds"]["step"]
            assert ratio == pytest.approx(took / usual)
    assert "saves beside" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["saving.json"]
