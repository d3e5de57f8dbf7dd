"""Teachers: noise (and label) to image, deterministic, with a fingerprint of all that matters.

`teacher.py` says what a teacher is, `sampler.py` how one is run. `diffusers_folder.py` reads
folders and repositories in diffusers format, `edm_checkpoint.py` those of NVlabs' EDM.
"""

from pathlib import Path

import torch

from data.teachers.diffusers_folder import DiffusersTeacher as DiffusersTeacher
from data.teachers.diffusers_folder import load_vae as load_vae
from data.teachers.edm.checkpoint import EdmTeacher as EdmTeacher
from data.teachers.edm.precondition import edm_loss as edm_loss
from data.teachers.settings import Execution as Execution
from data.teachers.settings import Sampler as Sampler
from data.teachers.settings import SamplerName as SamplerName
from data.teachers.teacher import Recorded as Recorded
from data.teachers.teacher import Teacher as Teacher
from get.errors import InputError

SHIPPED = Path(__file__).parents[1] / "weights"
"""Folder of the teachers and feature networks that come with this repository."""


def open_teacher(
    source: Path | str,
    sampler: Sampler,
    device: torch.device | str,
    execution: Execution = Execution(),  # noqa: B008  frozen
) -> DiffusersTeacher | EdmTeacher:
    """Open any teacher.

    Args:
        source: A folder in diffusers format, an EDM checkpoint (.pkl, or a folder with edm.json
            converted from one), or a hub id: "owner/name" or "owner/name@revision".
        sampler: The sampler's settings.
        device: Where the network runs.
        execution: Precision and speed.

    Raises:
        InputError: If there is no teacher, or none that goes with these settings.
    """
    path = Path(source)
    if path.suffix == ".pkl" or (path / "edm.json").is_file():
        if changed := execution.settings():
            raise InputError(
                f"expected no execution settings for the EDM checkpoint {path}, got "
                f"{', '.join(changed)}; it runs in float32 as it is"
            )
        return EdmTeacher(path, sampler, device)
    return DiffusersTeacher(source, sampler, device, execution)
