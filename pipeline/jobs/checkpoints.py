"""Checkpoints of a run: complete under their name, or not there at all.

    checkpoints/checkpoint-<step>/   the result so far, loadable as it is
      state/                         to continue from: weights, their average, the optimisers'
                                     moments (state.py), and state.json: steps, seconds, processes

The learning rate is a function of the settings and the step, as is everything random, so neither
schedules nor random states are kept. They are written beside the steps, from a copy of the state
(host_copy.py). See run.py for the rest of a run folder.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.files import hidden_path, new_folder, write_json
from get.errors import InputError
from pipeline.jobs import averages
from pipeline.jobs.host_copy import HostCopy, TrainState
from pipeline.jobs.state import load_moments
from pipeline.recipes.settings_make import TrainingConfig


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimiser steps done.
        seconds: Time spent in them, summed over all jobs that worked on the run.
        processes: Number of processes of the last job.
    """

    step: int = 0
    seconds: float = 0.0
    processes: int | None = None


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first; torn ones have another name."""
    paths = [p for p in run.glob("checkpoints/checkpoint-*") if p.name[11:].isdigit()]
    return sorted(paths, key=lambda p: int(p.name[11:]))


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    complete = checkpoints(run)
    return complete[-1] if complete else None


def name_latest(run: Path) -> str:
    """Return the words in which a run that failed names its newest checkpoint."""
    return f"the last good checkpoint is {latest(run) or 'none'}"


def save_checkpoint(
    config: TrainingConfig,
    state: HostCopy,
    progress: Progress,
    save_result: Callable[[Path, Any], object],
) -> None:
    """Write a checkpoint; once it is complete, delete all but the newest.

    Args:
        config: The settings of the run.
        state: What the next steps need, as it was.
        progress: How far the run had come then.
        save_result: Writes the averaged model, which it gets, as a loadable folder.

    Raises:
        OSError: If it cannot be written; older checkpoints are left as they are.
    """
    state.wait()
    run, every = config.output_dir, config.checkpointing_steps
    if progress.step % every == 0 or progress.step == config.max_train_steps:
        averages.save(run, progress.step, state.averages, every)
    with new_folder(run / "checkpoints" / f"checkpoint-{progress.step}") as checkpoint:
        save_result(checkpoint, state.average)
        folder = checkpoint / "state"
        folder.mkdir()
        for name, tensors in state.files.items():
            save_file(tensors, folder / f"{name}.safetensors")
        write_json(folder / "state.json", vars(progress))
    prune(run, config.checkpoints_total_limit)


def prune(run: Path, limit: int) -> None:
    """Delete all but the newest `limit` checkpoints."""
    for old in checkpoints(run)[:-limit]:  # hidden first: half a folder has no checkpoint's name
        shutil.rmtree(old.rename(hidden_path(old)))


def load_checkpoint(checkpoint: Path, state: TrainState) -> Progress:
    """Load a checkpoint into `state`, whose learning rates stay those of its own settings.

    Raises:
        InputError: If it cannot be read.
    """
    folder = checkpoint / "state"
    try:
        saved = json.loads((folder / "state.json").read_text())
        progress = Progress(saved["step"], saved["seconds"], saved.get("processes"))
        for name, module in state.modules.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        for name, optimizer in state.optimizers.items():
            moments = load_moments(folder / f"{name}.safetensors")
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"expected a readable checkpoint in {checkpoint}, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; delete that folder to go on from the one before"
        ) from error
    for scheduler, optimizer in zip(state.schedulers, state.optimizers.values(), strict=True):
        scheduler.last_epoch = progress.step
        rates = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, rate, factor in rates:
            group["lr"] = rate * factor(progress.step)
    return progress
