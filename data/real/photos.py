"""The second embedded real data set: 16x16 RGB patches of the photographs in scikit-image's wheel.

Class 0 is `astronaut` (Eileen Collins; NASA, public domain), class 1 `chelsea` (a cat; Stefan van
der Walt, CC0), class 2 `coffee` (a cup; Rachel Michetti, CC0), according to skimage.data.
Unlike the digits they have colour, texture and varied backgrounds, and nothing is downloaded.

Patches of the full photographs would show only texture, so each photograph is first shrunk by an
integer factor, to between 133 and 170 rows. The areas are then similar, and every class has 30 to
40% of either part. A photograph is divided into square cells, one in five of which is held out.
A patch lies entirely in held-out cells or entirely in the others, so no pixel is in both parts:
2,995 patches for training, 410 held out.
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.real.labelled import Labelled, Split
from get.images import from_uint8

SIZE = 16  # side of a patch
STRIDE = 4  # pixels between neighbouring patches
CELL = 32  # side of a cell
FACTORS = (3, 2, 3)  # by which the photographs are shrunk
Photograph = Literal["astronaut", "chelsea", "coffee"]


def photos(split: Split) -> Labelled:
    """Return one part of the split: float32 images in [-1, 1] and int64 labels.

    They are computed with integers up to the last step, so no library release changes them.
    """
    parts = [patches(_shrunk(name), split) for name in get_args(Photograph)]
    labels = [torch.full((len(part),), label) for label, part in enumerate(parts)]
    return Labelled(from_uint8(torch.from_numpy(np.concatenate(parts))), torch.cat(labels))


def photograph(name: Photograph) -> Float[Tensor, "3 height width"]:
    """Return a whole photograph, shrunk, in [-1, 1]."""
    return from_uint8(torch.from_numpy(_shrunk(name).transpose(2, 0, 1))[None])[0]


def _shrunk(name: Photograph) -> UInt8[np.ndarray, "height width 3"]:
    from skimage.data import astronaut, chelsea, coffee

    factors = dict(zip((astronaut, chelsea, coffee), FACTORS, strict=True))
    found = {read.__name__: read for read in factors}[name]
    return shrink(found(), factors[found])


def shrink(
    pixels: UInt8[np.ndarray, "height width 3"], factor: int
) -> UInt8[np.ndarray, "less_high less_wide 3"]:
    """Return the rounded means of squares of factor x factor pixels; incomplete ones are cut."""
    height, width = (side // factor for side in pixels.shape[:2])
    squares = pixels[: height * factor, : width * factor].astype(np.int64)
    sums = squares.reshape(height, factor, width, factor, 3).sum((1, 3))
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def patches(
    pixels: UInt8[np.ndarray, "height width 3"], split: Split
) -> UInt8[np.ndarray, "patch 3 size size"]:
    """Return the patches of a photograph that lie entirely in one part, row by row."""
    height, width = pixels.shape[:2]
    row, column = np.ogrid[:height, :width]
    held_out = (2 * (row // CELL) + column // CELL) % 5 == 0  # cells a knight's move apart
    inside = held_out if split == "held_out" else ~held_out
    rows = [
        pixels[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1)
        for top in range(0, height - SIZE + 1, STRIDE)
        for left in range(0, width - SIZE + 1, STRIDE)
        if inside[top : top + SIZE, left : left + SIZE].all()
    ]
    return np.stack(rows)
