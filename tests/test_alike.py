"""Processes that have read different checkpoints, or drifted apart, end instead of averaging."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from data.files import write_json
from get.errors import InputError
from pipeline.cli import Failed
from pipeline.jobs.run import Run

from .processes import Script, completed
from .runs import checkpoints
from .test_run import config, fresh_state


def run(
    folder: Path,
    accelerator: Accelerator,
    spoil: Callable[[int, torch.Tensor], object],
    data: object = None,
) -> str:
    """Run to the end or its error; `spoil` gets the weights before restore (step -1) and in steps.

    There is no DistributedDataParallel: the weights change as this process says.
    """
    state = fresh_state()
    weights = next(state.modules["model"].parameters()).data
    try:
        with Run(config(folder), accelerator, data) as opened:
            spoil(-1, weights)
            start = opened.restore(state)
            for step in opened.steps(start, state, lambda folder, model: None):
                spoil(step, weights)
    except (InputError, Failed) as error:
        return f"{type(error).__name__}: {error}"
    return "finished"


def main(folder: Path) -> None:
    """Be one of two processes."""
    accelerator = Accelerator()
    rank = accelerator.process_index

    def only(at: int) -> Callable[[int, torch.Tensor], object]:
        return lambda step, weights: weights.add_(1e-7 * (step == at and rank == 1))

    ends = {
        "alike": run(folder / "alike", accelerator, only(-9)),
        "drift": run(folder / "drift", accelerator, only(4)),
        "start": run(folder / "start", accelerator, only(-1)),
        # rank 1 has no checkpoint in a folder of its own; rank 0 goes on from step 4
        "folders": run(folder / ("drift", "empty")[rank], accelerator, only(-9)),
        # rank 1 counted the shards after another one was written
        "shards": run(folder / "shards", accelerator, only(-9), {"shards": 4 + rank}),
    }
    write_json(folder / f"{rank}.json", ends)


def test_processes_that_are_not_alike_end_in_one_line(tmp_path: Path, script: Script):
    completed(script("tests.test_alike", tmp_path, processes=2))
    for rank in (0, 1):
        ends = json.loads((tmp_path / f"{rank}.json").read_text())
        assert ends["alike"] == "finished"
        assert "Failed: expected the same weights in all processes after step 6" in ends["drift"]
        assert "the last good checkpoint is" in ends["drift"]
        assert "InputError: expected all processes to start with the same" in ends["start"]
        assert "InputError: expected all processes to start with the same" in ends["folders"]
        assert "InputError: expected the same data in all processes" in ends["shards"]
        assert not any("\n" in end for end in ends.values())
    assert checkpoints(tmp_path / "drift" / "run") == [2, 4]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
