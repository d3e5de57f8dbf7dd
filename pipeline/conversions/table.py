"""The conversions by name: their settings and what runs them.

Files of other projects to ours:

edm             a pickle of NVlabs EDM to a teacher's folder (data/teachers/edm/checkpoint.py)
get_pairs       pairs of locuslab/get to a data set of ours (data/locuslab_pairs.py)
get_checkpoint  a checkpoint of locuslab/get to a pipeline that train.py can continue from
                (pipeline/jobs/locuslab.py)

and ours to other people's:

export          a student to a folder that needs diffusers only, torch.export, ONNX
                (pipeline/jobs/export.py)
export_pairs    a data set to the layout of NVlabs FastGen or locuslab/get
                (data/other_layouts.py)

and a run of ours to another result:

ema             averaged weights of another length (pipeline/jobs/averages.py)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tyro

from pipeline.conversions import edm, ema, export, export_pairs, get_checkpoint, get_pairs


class ConversionConfig(Protocol):
    """What the settings of every conversion have."""

    @property
    def output_dir(self) -> Path:
        """The new folder."""
        ...


class Conversion(NamedTuple):
    """One conversion.

    Attributes:
        settings: Its settings; the command line changes them.
        main: Converts with these settings.
    """

    settings: ConversionConfig
    main: Callable[[Any], None]


NEW: Any = {"output_dir": tyro.MISSING}
CONVERSIONS = {
    "edm": Conversion(edm.EdmConversion(file=tyro.MISSING, **NEW), edm.main),
    "get_pairs": Conversion(get_pairs.PairsConversion(folder=tyro.MISSING, **NEW), get_pairs.main),
    "get_checkpoint": Conversion(
        get_checkpoint.CheckpointConversion(file=tyro.MISSING, **NEW), get_checkpoint.main
    ),
    "export": Conversion(export.ExportConversion(model=tyro.MISSING, **NEW), export.main),
    "ema": Conversion(ema.EmaConversion(run=tyro.MISSING, sigma_rel=tyro.MISSING, **NEW), ema.main),
    "export_pairs": Conversion(
        export_pairs.PairsExport(pairs=tyro.MISSING, **NEW), export_pairs.main
    ),
}
