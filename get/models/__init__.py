"""The students, GET and the ViT baseline, and `build`, which makes one of a published size.

Classifiers of images with the same blocks are in `image_classifier.py`.
"""

from get.errors import InputError
from get.models.get import GET as GET
from get.models.student import Equilibrium as Equilibrium
from get.models.student import Rollout as Rollout
from get.models.student import Student as Student
from get.models.student import Trajectory as Trajectory
from get.models.vit import ViT as ViT
from get.sizes import GET_SIZES, SIZES, VIT_SIZES


def build(
    size: str, *, image_size: int, channels: int = 3, num_classes: int | None = None
) -> GET | ViT:
    """Build a model of a published size with new weights.

    Args:
        size: A name in `SIZES`, such as "GET-T/2" or "ViT-B/4".
        image_size: Side of the square image in pixels.
        channels: Image channels.
        num_classes: Number of classes; None for an unconditional model.

    Raises:
        InputError: If there is no such size.
    """
    if size in GET_SIZES:
        width, depth, heads, ratio = GET_SIZES[size]
        return GET(
            image_size=image_size,
            channels=channels,
            num_classes=num_classes,
            width=width,
            depth=depth,
            heads=heads,
            equilibrium_mlp_ratio=ratio,
        )
    if size not in SIZES:
        raise InputError(f"expected a size among {', '.join(SIZES)}, got {size!r}")
    name, patch = size.split("/")
    width, depth, heads = VIT_SIZES[name]
    return ViT(
        image_size=image_size,
        channels=channels,
        num_classes=num_classes,
        patch_size=int(patch),
        width=width,
        depth=depth,
        heads=heads,
    )
