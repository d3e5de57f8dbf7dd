"""Noise and classes of EDM's seeds: what its generate.py makes on a CPU can be made again.

Our own pairs take theirs from `get/noise.py`, whose numbers no release of torch can change.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_by_seed(
    seeds: Iterable[int], shape: tuple[int, ...], num_classes: int | None = None
) -> tuple[Float[Tensor, "batch ..."], Int[Tensor, " batch"] | None]:
    """Draw as NVlabs EDM does: a generator for every seed, of which it takes 32 bits.

    Args:
        seeds: One a sample.
        shape: Shape of one sample.
        num_classes: Labels are uniform below this, drawn after the noise; None draws none.

    Returns:
        Unit normal float32 noise, one row a seed, and int64 labels or None.
    """
    noise, labels = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed % 2**32)
        noise.append(torch.randn(shape, generator=generator))
        if num_classes:
            labels.append(torch.randint(num_classes, (), generator=generator))
    return torch.stack(noise), torch.stack(labels) if num_classes else None
