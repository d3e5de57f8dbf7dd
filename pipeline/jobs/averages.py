"""Averages of the weights as a training goes on, from which others are made after it.

    averages/step-<step>.safetensors   float16, `<width>/<name of the parameter>`

A file for each of the last checkpoints with power-function averages (`get.ema.PowerEMA`), thinned
out as they become many. `convert ema` adds them up (conversions/ema.py); to continue a run, its
checkpoints have the averages in full precision.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.files import new_file

MOST = 32  # files; the 16 to 32 that stay meet the profile of 0.075 to 0.4 % to 0.1 %


def average_name(sigma_rel: float) -> str:
    """Return the name of an average's file in a checkpoint."""
    return f"ema-{sigma_rel}"


def saved(run: Path) -> dict[int, Path]:
    """Return the files of a run by their steps, which rise."""
    found = {path: re.fullmatch(r"step-(\d+)", path.stem) for path in run.glob("averages/*")}
    steps = {int(match[1]): path for path, match in found.items() if match}
    return dict(sorted(steps.items()))


def save(run: Path, step: int, averages: Mapping[float, Mapping[str, Tensor]], every: int) -> None:
    """Write the averages after a step; delete some of the older files if they are many.

    Args:
        run: The run folder.
        step: Steps made.
        averages: Parameters by name, of the average of each width; without any nothing is done.
        every: Steps from one file to the next.
    """
    if not averages:
        return
    tensors = {
        f"{width}/{name}": value.to(torch.float16)
        for width, parameters in averages.items()
        for name, value in parameters.items()
    }
    with new_file(run / "averages" / f"step-{step:06d}.safetensors") as temporary:
        save_file(tensors, temporary)
    files = saved(run)
    for old in files.keys() - kept(files, every):
        files[old].unlink()


def kept(steps: Collection[int], every: int, most: int = MOST) -> set[int]:
    """Return the steps whose files stay: evenly spaced, and the newest.

    The spacing is `every` times the lowest power of two that leaves `most` or fewer. So what is
    left depends on the newest step alone, however often a run was stopped.
    """
    newest = max(steps)
    while -(-newest // every) > most:
        every *= 2
    last = {(step - 1) // every: step for step in sorted(steps)}
    return set(last.values())


def cut(run: Path, step: int) -> None:
    """Delete the files after a step, which a resumed run writes again."""
    for later, path in saved(run).items():
        if later > step:
            path.unlink()
