"""What a set of real images is: images with their classes, in a training and a held-out part."""

from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Split = Literal["training", "held_out"]


class Labelled(NamedTuple):
    """Real images in [-1, 1] with their class indices."""

    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"]
