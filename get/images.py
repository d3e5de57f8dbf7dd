"""The only place where float [-1, 1] NCHW images meet 8-bit values and PIL."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def to_uint8(
    images: Float[Tensor, "batch channels height width"],
) -> UInt8[Tensor, "batch channels height width"]:
    """Quantise [-1, 1] to 0..255 as EDM does: x * 127.5 + 128, clipped, truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(
    images: UInt8[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Map 0..255 back to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pil(image: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """Return an 8-bit image of one (grey) or three (RGB) channels as PIL."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def from_pil(image: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """Return a grey or RGB picture as an 8-bit tensor of one or three channels."""
    array = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def grid(
    images: UInt8[Tensor, "batch channels height width"], columns: int, scale: int = 1, gap: int = 1
) -> Image.Image:
    """Lay images out row by row on white, each pixel enlarged `scale` times.

    Args:
        images: 8-bit images.
        columns: Images a row.
        scale: Whole-number magnification (nearest neighbour).
        gap: White pixels between images, before magnification.

    Returns:
        One grey or RGB picture; what is left of the last row stays white.
    """
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap),
        255,
        dtype=torch.uint8,
    )
    for i, image in enumerate(images.cpu()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return to_pil(sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2))
