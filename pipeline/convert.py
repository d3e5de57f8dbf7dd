"""From other people's files to ours: `python -m pipeline.convert NAME SOURCE OUT`.

    edm             a pickle of NVlabs EDM to a teacher's folder (data/teachers/edm/checkpoint.py)
    get_pairs       pairs of locuslab/get to a data set of ours (convert_get.py)
    get_checkpoint  a checkpoint of locuslab/get to a pipeline, from which training can go on

OUT is a new folder, or none: it appears once it is whole. Nothing in SOURCE is executed.
"""

import tyro

from data.files import new_folder
from data.teachers.edm.checkpoint import load, save
from get.errors import InputError
from pipeline import cli
from pipeline.config_convert import CheckpointConversion, EdmConversion, PairsConversion
from pipeline.convert_get import convert_checkpoint, convert_pairs

Conversion = EdmConversion | PairsConversion | CheckpointConversion
CONVERSIONS: dict[str, Conversion] = {
    "edm": EdmConversion(file=tyro.MISSING, output_dir=tyro.MISSING),
    "get_pairs": PairsConversion(folder=tyro.MISSING, output_dir=tyro.MISSING),
    "get_checkpoint": CheckpointConversion(file=tyro.MISSING, output_dir=tyro.MISSING),
}


def main(config: Conversion) -> None:
    """Convert what the settings name.

    Raises:
        InputError: If the source is not what it should be or there is something at OUT.
    """
    if config.output_dir.exists():
        raise InputError(
            f"expected nothing at {config.output_dir}, got a file or folder; choose another place"
        )
    match config:
        case EdmConversion():
            convert_edm(config)
        case PairsConversion():
            convert_pairs(config)
        case CheckpointConversion():
            convert_checkpoint(config)


def convert_edm(config: EdmConversion) -> None:
    """Write `edm.json` and `model.safetensors` of a pickle, none of which is executed."""
    checkpoint, *_ = load(config.file)
    with new_folder(config.output_dir) as folder:
        save(checkpoint, folder)
    print(f"{config.output_dir}: {len(checkpoint.state)} tensors of a {checkpoint.wrapper}")


if __name__ == "__main__":
    cli.run(main, lambda recipes: CONVERSIONS)
