"""The models and the table of their published sizes (arXiv:2401.08639, table of appendix A)."""

from get.errors import InputError
from get.models.get import GET as GET
from get.models.get import Equilibrium as Equilibrium
from get.models.get import Map as Map
from get.models.get import Start as Start
from get.models.get import Trajectory as Trajectory
from get.models.vit import ViT as ViT

# name: (width, injection blocks, heads, equilibrium MLP ratio); 3 equilibrium blocks in all
GET_SIZES = {
    "GET-T/2": (256, 6, 4, 6.0),
    "GET-M/2": (384, 6, 6, 6.0),
    "GET-S/2": (512, 6, 8, 8.0),
    "GET-B/2": (768, 1, 12, 12.0),
    "GET-B/2+": (768, 6, 12, 8.0),
}
# name: (width, blocks, heads); each with patches of 2, 4 and 8 pixels
VIT_SIZES = {
    "ViT-S": (384, 12, 6),
    "ViT-B": (768, 12, 12),
    "ViT-L": (1024, 24, 16),
    "ViT-XL": (1152, 28, 16),
}
SIZES = (*GET_SIZES, *(f"{name}/{patch}" for name in VIT_SIZES for patch in (2, 4, 8)))


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
