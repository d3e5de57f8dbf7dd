"""Noise and label of index i under a seed: one definition for pairs, sampling and evaluation.

Raw Philox numbers (fixed by numpy for ever, unlike its `Generator` methods) go through Box-Muller
in float64, so seed and index name an image on any machine, whatever the batch size, device or
number of processes.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.errors import InputError

IMAGE, START = 0, 1  # streams of one (seed, index): image noise and label; start of GET's iteration


def _stream(seed: int, index: int, stream: int) -> np.random.Philox:
    if not (0 <= seed < 2**64 and 0 <= index < 2**64):
        raise InputError(f"expected seed and index from 0 to 2^64 - 1, got {seed} and {index}")
    # An array of one type: numpy makes float64 of a list whose entries need different integers.
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, stream])


def _normal(bits: np.random.Philox, count: int) -> np.ndarray:
    """Return `count` unit normal float32 numbers (Box-Muller on 53-bit uniforms)."""
    pairs = -(-count // 2)
    uniform = (bits.random_raw(2 * pairs) >> np.uint64(11)) * 2.0**-53  # [0, 1)
    radius = np.sqrt(-2 * np.log1p(-uniform[:pairs]))
    angle = 2 * math.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:count].astype(np.float32)


def draw(
    seed: int, indices: Iterable[int], shape: tuple[int, ...], num_classes: int | None = None
) -> tuple[Float[Tensor, "batch ..."], Int[Tensor, " batch"] | None]:
    """Draw noise and labels.

    Args:
        seed: Non-negative, below 2^64.
        indices: Which samples, each non-negative and below 2^64.
        shape: Shape of one sample.
        num_classes: Labels are uniform below this; None draws none.

    Returns:
        Unit normal float32 noise, one row an index, and int64 labels or None.

    Raises:
        InputError: If seed or an index is out of range.
    """
    count = math.prod(shape)
    noise, labels = [], []
    for index in indices:
        bits = _stream(seed, index, IMAGE)
        noise.append(_normal(bits, count))
        if num_classes:
            labels.append(int(bits.random_raw()) * num_classes >> 64)
    tensor = torch.from_numpy(np.stack(noise)).view(-1, *shape)
    return tensor, torch.tensor(labels) if num_classes else None


def draw_start(
    seed: int, indices: Iterable[int], shape: tuple[int, ...]
) -> Float[Tensor, "batch ..."]:
    """Draw the random start of GET's iteration for models whose `z0` is "normal".

    A start can have 200,000 numbers: as many threads as torch uses draw one each.

    Args:
        seed: Non-negative, below 2^64.
        indices: Which samples, each non-negative and below 2^64.
        shape: Shape of one start.

    Returns:
        Unit normal float32 numbers, one row an index, independent of the noise that `draw` gives.

    Raises:
        InputError: If seed or an index is out of range.
    """
    count = math.prod(shape)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        rows = list(threads.map(lambda i: _normal(_stream(seed, i, START), count), indices))
    return torch.from_numpy(np.stack(rows)).view(-1, *shape)


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """Return 32 bits (torch's CPU generator ignores more) for the draws of one step."""
    return int(_stream(seed, step, stream).random_raw()) >> 32
