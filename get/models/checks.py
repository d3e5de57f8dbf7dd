"""What a network of patches can be built with and called with; one clear line for all else.

What runs in every call reads no value of a tensor: no GPU is waited for, torch.compile traces it
away. Only `check_labels` does, where labels come from outside.
"""

import torch
from torch import Tensor

from get.errors import InputError


def check_sizes(*sizes: tuple[str, object, int]) -> None:
    """Raise InputError unless all sizes (name, value, least) are whole and at least that."""
    for name, value, least in sizes:
        if not isinstance(value, int) or value < least:
            raise InputError(f"expected {name} to be whole and at least {least}, got {value!r}")


def check_choices(*choices: tuple[str, str, tuple[str, ...]]) -> None:
    """Raise InputError unless all choices (name, value, allowed) are among those allowed."""
    for name, value, allowed in choices:
        if value not in allowed:
            raise InputError(f"expected {name} to be one of {allowed}, got {value!r}")


def check_shape(
    image_size: int,
    channels: int,
    patch_size: int,
    width: int,
    heads: int,
    num_classes: int | None,
    *mlp_ratios: float,
) -> None:
    """Raise InputError if the sizes of a network are none, or do not divide each other."""
    check_sizes(
        *(("image_size", image_size, 1), ("channels", channels, 1), ("patch_size", patch_size, 1)),
        *(("width", width, 1), ("heads", heads, 1)),
        ("num_classes (None: unconditional)", 1 if num_classes is None else num_classes, 1),
    )
    if image_size % patch_size:
        raise InputError(f"expected patch_size to divide {image_size}, got {patch_size}")
    if width % heads or width % 4:
        raise InputError(f"expected a width that 4 and {heads} heads divide, got {width}")
    for ratio in mlp_ratios:
        if not isinstance(ratio, int | float) or not width * ratio >= 1:
            raise InputError(
                f"expected an mlp_ratio that gives a width of {width} hidden units, got {ratio!r}"
            )


def check_call(
    noise: Tensor,
    labels: Tensor | None,
    channels: int,
    image_size: int,
    num_classes: int | None,
    weight: Tensor,
) -> None:
    """Raise InputError if noise or labels are not what a model of this shape takes.

    Labels that are too large show when they are looked up. Devices are not compared, and only
    double precision is: diffusers may keep weights elsewhere, in 8 bits, until they are used.

    Args:
        noise: Noise of a call.
        labels: Labels of a call.
        channels: Image channels of the model.
        image_size: Side of its images.
        num_classes: Number of its classes; None for an unconditional model.
        weight: One of its weights, for the precision.
    """
    shape = (channels, image_size, image_size)
    if not isinstance(noise, Tensor) or noise.shape[1:] != shape or noise.dim() != 4:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise InputError(
            f"expected noise as a tensor of shape (batch, {channels}, {image_size}, {image_size}), "
            f"got {found}; give the image shape the model was made for"
        )
    double = torch.float64
    if not noise.is_floating_point() or (noise.dtype == double) != (weight.dtype == double):
        raise InputError(
            f"expected noise of {weight.dtype}, as the model's weights, got {noise.dtype}; "
            "convert it by noise.to(model.dtype)"
        )
    if num_classes and labels is None:
        raise InputError(f"expected labels below {num_classes}, got None; the model is conditional")
    if not num_classes and labels is not None:
        raise InputError("expected no labels, got some; the model is unconditional")
    if labels is None:
        return
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32):
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(
            f"expected labels as a tensor of torch.int64, got {found}; "
            "torch.tensor([3, 1, 4]) is one for three images"
        )
    if labels.shape != noise.shape[:1]:
        raise InputError(
            f"expected {len(noise)} labels, got shape {tuple(labels.shape)}; give one an image"
        )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise InputError if a label is no class; this reads them, on a GPU it waits."""
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise InputError(
            f"expected labels from 0 to {num_classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
