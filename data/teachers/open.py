"""Opens any teacher: the format is known by the name of the file, or the files of the folder."""

from pathlib import Path

import torch

from data.teachers.diffusers_folder import open_folder
from data.teachers.edm.checkpoint import open_checkpoint
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher


def open_teacher(
    source: Path | str,
    sampler: Sampler,
    device: torch.device | str,
    execution: Execution = Execution(),  # noqa: B008  frozen
) -> Teacher:
    """Open any teacher; its network runs on the device.

    The source is a folder in diffusers format, an EDM checkpoint (.pkl, or a folder with edm.json
    converted from one), or a hub id: "owner/name" or "owner/name@revision".

    Raises:
        InputError: If there is no teacher, or none that goes with these settings.
    """
    path = Path(source)
    if path.suffix == ".pkl" or (path / "edm.json").is_file():
        return open_checkpoint(path, sampler, device, execution)
    return open_folder(source, sampler, device, execution)
