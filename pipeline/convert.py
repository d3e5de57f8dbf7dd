"""Convert files of other projects to ours and back: `python -m pipeline.convert NAME SOURCE OUT`.

The conversions are in pipeline/conversions; `table.py` there lists them by name. OUT must not
exist; it appears once it is complete. Nothing in SOURCE is executed.
"""

from get.errors import InputError
from pipeline import cli
from pipeline.conversions.table import CONVERSIONS, ConversionConfig


def main(config: ConversionConfig) -> None:
    """Run the conversion that has settings of this kind.

    Raises:
        InputError: If the source is not what it should be or OUT exists.
    """
    if config.output_dir.exists():
        raise InputError(
            f"expected nothing at {config.output_dir}, got a file or folder; choose another place"
        )
    mains = {type(conversion.settings): conversion.main for conversion in CONVERSIONS.values()}
    mains[type(config)](config)


if __name__ == "__main__":
    cli.run(main, lambda recipes: {name: c.settings for name, c in CONVERSIONS.items()})
