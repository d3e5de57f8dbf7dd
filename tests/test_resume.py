"""A training that was killed at any call ends with the bits of an undisturbed one."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .processes import MANY, At, Script, completed
from .runs import STEPS, WEIGHTS, assert_same, checkpoints, contents, metrics, writing


@pytest.fixture(scope="module")
def undisturbed(train: Script, pairs: Path) -> dict[int, Path]:
    """Undisturbed runs, by number of processes."""
    runs = {n: pairs.with_name(f"undisturbed-{n}") for n in (1, 2)}
    for processes, run in runs.items():
        completed(train(run, "--pairs", pairs, processes=processes))
    return runs


def step(number: int) -> At:
    """Return the moment at which a step has moved the weights and nothing is written yet."""
    return At("get.step", str(number))


# ---------------------------------------------------------------- kill -9

# Moments and the checkpoints that may be there then.
MOMENTS = {
    "before its settings are written": (At("os.rename", "*/run.json"), [[]]),
    "before the first checkpoint": (step(3), [[]]),
    "inside a step": (step(7), [[], [4]]),
    "before a line of metrics": (At("open", "*/metrics.jsonl", count=6), [[], [4]]),
    "inside a checkpoint": (writing(8), [[4]]),
    "at the end of a checkpoint": (At("os.rename", "*/.checkpoint-8.*/state/state.json"), [[4]]),
    "before a checkpoint's rename": (At("os.rename", "*/checkpoint-8"), [[4]]),
    "before an old one is deleted": (At("os.rename", "*/checkpoint-4", count=2), [[4, 8, 12]]),
    "while an old one is deleted": (At("shutil.rmtree", "*/.checkpoint-4.*"), [[8, 12]]),
    "after the last step": (At("shutil.copyfile", "*"), [[8, 12]]),
    "inside the result": (At("shutil.copyfile", "*", count=2), [[8, 12]]),
    "before it is called finished": (At("os.rename", "*/finished.json"), [[8, 12]]),
}


@pytest.mark.parametrize(("at", "possible"), MOMENTS.values(), ids=MOMENTS)
def test_a_training_killed_at_a_bad_moment_ends_with_the_same_bits(
    at, possible, train, pairs, undisturbed, tmp_path
):
    run = tmp_path / "run"
    assert train(run, "--pairs", pairs, at=at).codes == [-signal.SIGKILL]
    kept = checkpoints(run)
    assert kept in possible
    assert not (run / "finished.json").exists()
    if (lines := run / "metrics.jsonl").exists():
        lines.write_text(lines.read_text() + '{"step": 9, "lo')  # killed as it wrote this
    again = completed(train(run, "--pairs", pairs))
    if kept:
        assert f"continuing at step {kept[-1]} of {STEPS}\n" in again.out
    assert_same(run, undisturbed[1])


WORLDS = [(0, 1), (2, 1), (0, 2), (2, 2)]  # loader workers, processes


def random_kills(count: int, seed: int) -> list[tuple[float, int, int]]:
    """Return moments, as fractions of a training's function calls, and a world for each."""
    draws = random.Random(seed)
    return [(draws.random(), *WORLDS[i % len(WORLDS)]) for i in range(count)]


@pytest.fixture(scope="module")
def calls(train: Script, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many functions are called from the opening of a run to its end."""
    folder = tmp_path_factory.mktemp("calls")
    at = At("open", "*/run.lock", calls=MANY)
    completed(train(folder / "run", "--pairs", pairs, at=at, count=folder / "calls"))
    return int((folder / "calls").read_text())


@pytest.mark.parametrize(
    ("fraction", "workers", "processes"),
    [
        *random_kills(4, seed=0),
        *(pytest.param(*kill, marks=pytest.mark.slow) for kill in random_kills(20, seed=1)),
    ],
)
def test_a_training_killed_at_a_random_call_ends_with_the_same_bits(
    fraction, workers, processes, train, pairs, calls, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs, "--dataloader_num_workers", workers
    at = At("open", "*/run.lock", calls=max(1, int(fraction * calls)))
    killed = train(*command, processes=processes, at=at)
    assert killed.codes == [-signal.SIGKILL] * processes
    completed(train(*command, processes=processes))
    assert_same(tmp_path / "run", undisturbed[processes])


def test_loader_workers_of_a_killed_training_do_not_keep_its_folder(
    train, pairs, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs, "--dataloader_num_workers", 2
    train(*command, at=step(7), group=False)
    completed(train(*command))
    assert_same(tmp_path / "run", undisturbed[1])


def test_a_training_ends_with_one_of_its_processes_and_goes_on_with_the_same_bits(
    train, pairs, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs
    alone, killed = train(*command, processes=2, rank=1, at=step(7), group=False).codes
    assert killed == -signal.SIGKILL
    assert alone not in (0, -signal.SIGKILL)
    completed(train(*command, processes=2))
    assert_same(tmp_path / "run", undisturbed[2])


# ---------------------------------------------------------------- another number of processes


def assert_close(run: Path, other: Path) -> None:
    """Compare runs that sum gradients in another order: all figures of all steps, the result.

    Not the raw weights: where the gradient is nothing but rounding, as for the bias of attention's
    keys, AdamW makes a step of it.
    """
    for ours, theirs in zip(metrics(run), metrics(other), strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=1e-6)
    ours, theirs = load_file(run / WEIGHTS), load_file(other / WEIGHTS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_two_processes_train_what_one_does(undisturbed):
    assert_close(undisturbed[2], undisturbed[1])


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_processes_goes_on_and_is_reported(
    before, train, pairs, undisturbed, tmp_path
):
    run, now = tmp_path / "run", 3 - before
    train(run, "--pairs", pairs, at=writing(8), processes=before)
    shown = completed(train(run, "--pairs", pairs, processes=now)).out
    assert f"continuing at step 4 of {STEPS}, on {now} processes instead of {before}\n" in shown
    assert_close(run, undisturbed[1])


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGUSR1, 2), (signal.SIGTERM, 2)],
)
def test_a_signal_to_all_its_processes_saves_the_step_and_ends_the_training(
    number, workers, train, pairs, undisturbed, tmp_path
):
    command = tmp_path / "run", "--pairs", pairs, "--dataloader_num_workers", workers
    stopped = train(*command, at=step(6), number=number)
    assert stopped.codes == [128 + number], stopped.err[-2000:]
    assert f"stopped by {number.name}: step 6 of {STEPS} is saved" in stopped.err
    assert checkpoints(tmp_path / "run") == [4, 6]
    completed(train(*command))
    assert_same(tmp_path / "run", undisturbed[1])


def test_a_signal_to_one_of_two_processes_ends_both(train, pairs, undisturbed, tmp_path):
    command = tmp_path / "run", "--pairs", pairs
    ended = train(*command, processes=2, rank=1, at=step(3), number=signal.SIGUSR1, group=False)
    assert ended.codes == [128 + signal.SIGUSR1] * 2
    last = checkpoints(tmp_path / "run")[-1]
    assert f"step {last} of {STEPS} is saved" in ended.err
    completed(train(*command, processes=2))
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (undisturbed[2] / WEIGHTS).read_bytes()


# ---------------------------------------------------------------- other settings


def moved(run: Path, step: int) -> float:
    """Return how far the weights have gone in the step after this one."""
    return float((weights(run, step + 1) - weights(run, step)).norm())


def weights(run: Path, step: int) -> torch.Tensor:
    path = run / "checkpoints" / f"checkpoint-{step}" / "state" / "model.safetensors"
    return torch.cat([x.double().flatten() for x in load_file(path).values()])


def test_other_settings_are_refused_in_one_line_or_hold_from_the_next_step(train, pairs, tmp_path):
    run, same = tmp_path / "run", tmp_path / "same"
    train(run, "--pairs", pairs, at=writing(8))
    before = contents(run)
    refused = train(run, "--pairs", pairs, "--model.width", 16, "--learning_rate", 1e-4)
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert "model.width was 8, is 16" in refused.err
    assert "learning_rate was 0.002, is 0.0001" in refused.err
    assert "--allow_config_change" in refused.err
    assert contents(run) == before

    shutil.copytree(run, same)
    slower = "--learning_rate", 1e-4, "--muon_learning_rate", 1e-3, "--allow_config_change"
    next_step = {"at": step(5), "number": signal.SIGTERM}
    shown = train(run, "--pairs", pairs, *slower, **next_step)
    train(same, "--pairs", pairs, **next_step)
    assert shown.codes == [128 + signal.SIGTERM]
    assert "going on with other settings: learning_rate was 0.002, is 0.0001; " in shown.out
    assert moved(run, 4) == pytest.approx(moved(same, 4) / 20, rel=1e-3)

    record = json.loads((run / "run.json").read_text())
    (earlier,) = record["earlier"]
    assert (record["config"]["learning_rate"], earlier["config"]["learning_rate"]) == (1e-4, 2e-3)
    assert earlier["until"] == "checkpoint-4"
    completed(train(run, "--pairs", pairs, *slower[:-1]))  # the settings are equal now


LONGER = ("--max_train_steps", STEPS + 2)


@pytest.mark.parametrize("at", [None, At("os.rename", "*/run.json")], ids=["", "killed"])
def test_a_finished_run_trains_for_longer_if_it_may(at, train, pairs, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed[1], tmp_path / "run")
    command = run, "--pairs", pairs, *LONGER
    refused = train(*command)
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert f"max_train_steps was {STEPS}, is {STEPS + 2}" in refused.err
    if at:
        killed = train(*command, "--allow_config_change", at=at)  # as it writes the change
        assert killed.codes == [-signal.SIGKILL]
    completed(train(*command, "--allow_config_change"))
    assert json.loads((run / "finished.json").read_text())["steps"] == STEPS + 2
    assert [x["step"] for x in metrics(run) if "loss" in x] == list(range(1, STEPS + 3))
    assert (run / WEIGHTS).read_bytes() != (undisturbed[1] / WEIGHTS).read_bytes()
