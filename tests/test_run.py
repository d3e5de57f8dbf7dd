"""A run saves, resumes bit by bit, and refuses a folder or settings that are not its own."""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from data.files import read_json, write_json
from get.errors import InputError
from get.noise import step_seed
from pipeline.cli import Failed
from pipeline.jobs.checkpoints import latest
from pipeline.jobs.host_copy import TrainState
from pipeline.jobs.run import Run, finished
from pipeline.recipes.settings_make import TrainingConfig


def config(folder: Path, **changes) -> TrainingConfig:
    few = TrainingConfig(
        output_dir=folder / "run", max_train_steps=6, checkpointing_steps=2, log_steps=1
    )
    return replace(few, **changes)


def fresh_state() -> TrainState:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 2))
    modules = {"model": model, "ema": nn.Linear(3, 2)}
    return TrainState(modules, {"optimizer": optimizer}, (scheduler,))


def train(
    settings: TrainingConfig, at_step: Callable[[int], object] = lambda step: None
) -> TrainState:
    """Train a straight line; what `at_step` returns is added to the loss."""
    state = fresh_state()
    model = state.modules["model"]
    with Run(settings, Accelerator()) as run:
        start = run.restore(state)
        for step in run.steps(
            start, state, lambda folder, _: write_json(folder / "result.json", 1)
        ):
            generator = torch.Generator().manual_seed(step_seed(settings.seed, step))
            loss = model(torch.randn(8, 3, generator=generator)).square().mean()
            loss = loss + (at_step(step) or 0.0)
            state.optimizers["optimizer"].zero_grad()
            loss.backward()
            state.optimizers["optimizer"].step()
            state.schedulers[0].step()
            run.record(step, loss=loss)
    return state


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "run" / "checkpoints").iterdir())


def metrics(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    """Send this process a signal during a step."""
    return lambda now: os.kill(os.getpid(), number) if now == step else None


# ---------------------------------------------------------------- save and resume


def test_the_newest_checkpoint_is_the_highest_complete_one(tmp_path):
    assert latest(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", ".checkpoint-11.tmp", "checkpoint-12.old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert latest(tmp_path) == tmp_path / "checkpoints" / "checkpoint-10"


def test_the_newest_checkpoints_are_kept_up_to_the_limit(tmp_path):
    train(config(tmp_path, checkpoints_total_limit=2))
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_a_finished_run_has_its_result_and_is_left_alone(tmp_path, capsys):
    train(config(tmp_path))
    assert finished(tmp_path / "run")
    assert read_json(tmp_path / "run" / "result.json") == 1
    assert [x["step"] for x in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]

    for _ in range(2):  # the second time without checkpoints, which a user may have deleted
        files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.*")}
        train(config(tmp_path), lambda step: pytest.fail("a step was done again"))
        assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.*")}
        assert "finished; nothing to do" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)


def test_restore_gives_every_bit_and_the_step_back(tmp_path):
    with pytest.raises(SystemExit):
        train(config(tmp_path), stop_at(2))
    saved = tmp_path / "run" / "checkpoints" / "checkpoint-3" / "state"
    state = fresh_state()
    with Run(config(tmp_path), Accelerator()) as run:
        assert run.restore(state) == 3
    weights = state.modules["model"].state_dict()
    assert all(
        torch.equal(weights[k], v) for k, v in load_file(saved / "model.safetensors").items()
    )
    optimizer = state.optimizers["optimizer"].state_dict()
    stored = load_file(saved / "optimizer.safetensors")
    assert len(stored) == 6  # step, exp_avg and exp_avg_sq of weight and bias
    for name, value in stored.items():
        index, key = name.split(".")
        assert torch.equal(optimizer["state"][int(index)][key], value)
    assert state.schedulers[0].last_epoch == 3
    assert optimizer["param_groups"][0]["lr"] == 0.1 * 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_run_stopped_by_a_signal_is_saved_and_goes_on_as_if_nothing_had_happened(
    number, tmp_path, capsys
):
    undisturbed = train(config(tmp_path / "undisturbed")).modules["model"].state_dict()
    before = signal.signal(number, signal.SIG_DFL)  # the tests may have been started with nohup
    try:
        with pytest.raises(SystemExit) as stopped:
            train(config(tmp_path), stop_at(2, number))
    finally:
        signal.signal(number, before)
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name}: step 3 of 6 is saved" in capsys.readouterr().err
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert not finished(tmp_path / "run")

    resumed = train(config(tmp_path)).modules["model"].state_dict()
    assert all(torch.equal(undisturbed[k], resumed[k]) for k in undisturbed)
    assert metrics(tmp_path) == metrics(tmp_path / "undisturbed")


def test_a_closed_terminal_does_not_stop_what_nohup_started(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(config(tmp_path), stop_at(2, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert finished(tmp_path / "run")


def test_metrics_are_cut_at_the_resumed_step(tmp_path):
    with pytest.raises(SystemExit):
        train(config(tmp_path), stop_at(2))
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + '{"step": 4, "loss": 0.5}\n{"step": 5, "lo')
    with Run(config(tmp_path), Accelerator()) as run:
        run.restore(fresh_state())
    assert path.read_text() == before


def test_values_that_are_not_finite_end_the_run_and_are_not_saved(tmp_path):
    with pytest.raises(Failed, match=r"loss nan in step 4; the last good .*checkpoint-2;"):
        train(config(tmp_path, log_steps=5), lambda step: float("nan") if step == 3 else 0.0)
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert not finished(tmp_path / "run")


# ---------------------------------------------------------------- refuse


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "state" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def garble(checkpoint: Path) -> None:
    (checkpoint / "state" / "state.json").write_text('{"step": 4')


def garble_bytes(checkpoint: Path) -> None:
    (checkpoint / "state" / "state.json").write_bytes(b"\xff")


def lose(checkpoint: Path) -> None:
    (checkpoint / "state" / "optimizer.safetensors").unlink()


def reshape(checkpoint: Path) -> None:
    save_file({"weight": torch.zeros(1)}, checkpoint / "state" / "model.safetensors")


@pytest.mark.parametrize("damage", [truncate, garble, garble_bytes, lose, reshape])
def test_an_unreadable_checkpoint_is_named_in_one_line(damage, tmp_path):
    with pytest.raises(SystemExit):
        train(config(tmp_path), stop_at(3))
    damage(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    with pytest.raises(InputError, match=r"checkpoint in .*checkpoint-4, got .*; delete") as error:
        train(config(tmp_path))
    assert "\n" not in str(error.value)


def test_a_run_of_an_older_version_goes_on_without_settings_that_came_or_went(tmp_path):
    train(config(tmp_path))
    path = tmp_path / "run" / "run.json"
    record = read_json(path)
    del record["config"]["adam_beta2"]  # as if it had come since, with the default it had
    write_json(path, {**record, "config": {**record["config"], "gone": 3}})
    train(config(tmp_path))
    with pytest.raises(InputError, match=r"adam_beta2 was 0\.999, is 0\.9"):
        train(config(tmp_path, adam_beta2=0.9))


def test_other_settings_are_refused_by_name_and_free_ones_are_not(tmp_path):
    with pytest.raises(SystemExit):
        train(config(tmp_path), stop_at(0))
    with pytest.raises(
        InputError, match=r"got: seed was 0, is 1; learning_rate was 0.002, is 0.1;"
    ):
        train(config(tmp_path, seed=1, learning_rate=0.1))
    with (
        pytest.raises(InputError, match="data was None, is 'other pairs'"),
        Run(config(tmp_path), Accelerator(), data="other pairs"),
    ):
        pass
    train(config(tmp_path, log_steps=2, checkpointing_steps=3, checkpoints_total_limit=9))
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-6"]


def test_a_folder_of_other_things_is_refused_and_never_emptied(tmp_path):
    run = tmp_path / "run"
    (run / "folder").mkdir(parents=True)
    (run / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(
            InputError, match=r"got folder, thesis\.tex; choose another output_dir$"
        ):
            train(config(tmp_path, overwrite_output_dir=overwrite))
    assert {"folder", "thesis.tex"} < {p.name for p in run.iterdir()}


def test_an_overwritten_run_leaves_nothing_but_what_a_link_names(tmp_path):
    train(config(tmp_path))
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "link").symlink_to(elsewhere)
    (run / "notes.txt").touch()
    train(config(tmp_path, overwrite_output_dir=True))
    assert finished(run)
    assert elsewhere.is_dir()
    assert not {"link", "notes.txt"} & {p.name for p in run.iterdir()}


def test_what_a_killed_job_left_half_written_is_not_foreign(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.123.tmp").write_text("{")
    train(config(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_used_with_a_warning(number, tmp_path, monkeypatch, capsys):
    def flock(*arguments: object) -> None:  # as Lustre without the option flock answers
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    train(config(tmp_path))
    assert finished(tmp_path / "run")
    assert f"no locks there ({os.strerror(number)}); only one job" in capsys.readouterr().err


def test_a_second_job_in_the_same_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="got another job at work"):
            train(config(tmp_path))
    train(config(tmp_path))
