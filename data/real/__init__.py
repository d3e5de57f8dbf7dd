"""Real images: what teachers and feature networks learn from, and what FID compares with.

`digits.py` and `photos.py` are embedded sets, `folder.py` reads pictures of the user's own.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Split = Literal["training", "held_out"]


class Labelled(NamedTuple):
    """Real images in [-1, 1] with their class indices."""

    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"]


def real_images(name: str, split: Split) -> Labelled:
    """Return one part of a set of real images.

    Args:
        name: "digits", "photos", or a folder of pictures (see `folder.py`).
        split: Which part.

    Raises:
        InputError: If the folder is missing or cannot serve.
    """
    from data.real import digits, folder, photos  # they import this module

    match name:
        case "digits":
            return digits.digits(split)
        case "photos":
            return photos.photos(split)
    return folder.pictures(Path(name), split)
