"""Signals at random moments of writing and training: the same command ends with the same bytes.

A case is decided by its number: which command, which signals, when. Other tests choose bad moments
on purpose (test_claims.py, test_resume.py). FUZZ_SEEDS=100-4099 chooses the cases of the slow test.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from .processes import MANY, At, Result, Script, completed
from .runs import assert_same_end
from .shards import contents

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGKILL")
PAIRS = (
    *("pipeline.make_pairs", "smoke", "--num_pairs", 32, "--pairs_per_shard", 8),
    *("--teacher_batch_size", 4, "--num_inference_steps", 2, "--output_dir"),
)


def same_pairs(folder: Path, other: Path) -> None:
    assert contents(folder) == contents(other)


class Work(NamedTuple):
    """A command that may be stopped, and what it ends with.

    Attributes:
        start: Runs it in a folder.
        begin: A file that it opens before its work, from which on moments are counted.
        calls: Function calls from there to its end.
        whole: The folder that it leaves undisturbed.
        same: Compares two folders.
    """

    start: Callable[..., Result]
    begin: str
    calls: int
    whole: Path
    same: Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def works(
    script: Script, train: Script, pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Work]:
    """The commands, each of which has run once."""
    folder = tmp_path_factory.mktemp("whole")
    commands: dict[str, tuple] = {
        "pairs": (lambda to, **o: script(*PAIRS, to, **o), "*/*manifest.json", same_pairs),
        "training": (
            lambda to, **o: train(to, "--pairs", pairs, **o),
            "*/run.lock",
            assert_same_end,
        ),
    }
    found = {}
    for name, (start, begin, same) in commands.items():
        count = folder / f"{name}.calls"
        completed(start(folder / name, at=At("open", begin, calls=MANY), count=count))
        found[name] = Work(start, begin, int(count.read_text()), folder / name, same)
    return found


def check(seed: int, work: Work, folder: Path) -> None:
    """Stop a command up to three times at random, then let it end."""
    rng = random.Random(seed)
    done = []
    try:
        for _ in range(rng.randint(1, 3)):
            name, calls = rng.choice(SIGNALS), rng.randint(1, work.calls)
            done.append((name, calls))
            number = signal.Signals[name]
            stopped = work.start(
                folder, at=At("open", work.begin, calls=calls), number=int(number), group=False
            )
            expected = {0, 128 + number, -number}  # at its end, stopped, before it listens
            assert stopped.code in expected, stopped.err[-2000:]
            assert number == signal.SIGKILL or "Traceback" not in stopped.err
        completed(work.start(folder))
        work.same(folder, work.whole)
    except BaseException as error:
        error.add_note(f"case {seed}: {done}")
        raise


@pytest.mark.parametrize(("name", "seed"), [("pairs", 0), ("pairs", 1), ("training", 2)])
def test_work_that_is_stopped_at_random_ends_with_the_same_bytes(name, seed, works, tmp_path):
    check(seed, works[name], tmp_path / "work")


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", ["pairs", "training"])
def test_work_that_is_stopped_at_random_many_times_ends_with_the_same_bytes(name, works, tmp_path):
    first, last = map(int, os.environ.get("FUZZ_SEEDS", "100-179").split("-"))
    for seed in range(first, last + 1):
        check(seed, works[name], tmp_path / str(seed))
        shutil.rmtree(tmp_path / str(seed))
