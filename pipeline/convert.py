"""From other people's checkpoints to ours: `python -m pipeline.convert NAME FILE OUT`.

    edm    a pickle of NVlabs EDM to a teacher's folder (data/teachers/edm_checkpoint.py)

OUT is a new folder, or none: it appears once it is whole.
"""

import tyro

from data.teachers.edm_checkpoint import load, save
from get.errors import InputError
from pipeline import cli
from pipeline.config import EdmConversion
from pipeline.files import new_folder

CONVERSIONS = {"edm": EdmConversion(file=tyro.MISSING, output_dir=tyro.MISSING)}


def main(config: EdmConversion) -> None:
    """Convert what the settings name.

    Raises:
        InputError: If FILE is no such checkpoint or there is something at OUT.
    """
    if config.output_dir.exists():
        raise InputError(
            f"expected nothing at {config.output_dir}, got a file or folder; choose another place"
        )
    match config:
        case EdmConversion():
            convert_edm(config)


def convert_edm(config: EdmConversion) -> None:
    """Write `edm.json` and `model.safetensors` of a pickle, none of which is executed."""
    checkpoint, _ = load(config.file)
    with new_folder(config.output_dir) as folder:
        save(checkpoint, folder)
    print(f"{config.output_dir}: {len(checkpoint.state)} tensors of a {checkpoint.wrapper}")


if __name__ == "__main__":
    cli.run(main, CONVERSIONS)
