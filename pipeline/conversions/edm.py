"""A pickle of NVlabs EDM to a teacher's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data.files import new_folder
from data.teachers.edm.checkpoint import load, save


@dataclass(frozen=True, kw_only=True)
class EdmConversion:
    """Turn a checkpoint of NVlabs EDM into a teacher's folder; nothing in it is executed.

    Attributes:
        file: The checkpoint, a pickle.
        output_dir: The new folder.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]


def main(config: EdmConversion) -> None:
    """Write the `edm.json` and `model.safetensors` of a pickle."""
    checkpoint, *_ = load(config.file)
    with new_folder(config.output_dir) as folder:
        save(checkpoint, folder)
    print(f"{config.output_dir}: {len(checkpoint.state)} tensors of a {checkpoint.wrapper}")
