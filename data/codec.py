"""The members of a tar: pairs as the bytes of .npy and .png files, and back.

Nothing is ever unpickled. See manifest.py for the layout of a data set.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.manifest import ImageFormat, Manifest
from data.pairs import Pairs
from data.png import decode_rows, read_rows
from get.images import to_pil, to_uint8


def encode(
    first: int, pairs: Pairs, form: ImageFormat, pack: int = 1
) -> Iterator[dict[str, str | bytes]]:
    """Yield pairs as members of a tar, under the keys that webdataset expects.

    Args:
        first: Index of the first pair; the others follow.
        pairs: Images are floats in [-1, 1].
        form: "png" (8 bit), "npy" (float16) or "npy32" (float32).
        pack: Pairs per member; above 1 they are stacked, 8-bit images as an array too.
    """
    if form == "png":
        stored = to_uint8(pairs.images).numpy()
    else:
        stored = pairs.images.numpy().astype(np.float16 if form == "npy" else np.float32)
    noise = pairs.noise.numpy()
    states = None if pairs.states is None else pairs.states.numpy().astype(np.float16)
    classes = None if pairs.labels is None else pairs.labels.numpy()
    packed = pack > 1
    for at in range(0, len(stored), pack):
        part = slice(at, at + pack) if packed else at
        key = f"{first + at:09d}"
        sample: dict[str, str | bytes] = {"__key__": key, "latent.npy": _npy(noise[part])}
        if form == "png" and not packed:
            buffer = io.BytesIO()
            to_pil(torch.from_numpy(stored[at])).save(buffer, format="png")
            sample["image.png"] = buffer.getvalue()
        else:
            sample["image.npy"] = _npy(stored[part])
        if classes is not None and packed:
            sample["cls.npy"] = _npy(classes[part])
        elif classes is not None:
            sample["cls"] = str(classes[at]).encode()
        if states is not None:
            sample["states.npy"] = _npy(states[part])
        yield sample


def decode(
    samples: Iterable[Mapping[str, Any]], first: int, manifest: Manifest, *, states: bool = False
) -> Pairs:
    """Return the pairs of a shard's members, images as stored.

    What comes is untrusted: a matching sha256 excludes neither another shard nor tampering.

    Args:
        samples: The members, by key.
        first: Index of the first pair.
        manifest: What the pairs must be: their number, types, shapes and classes.
        states: Whether to return the states of trajectories, if there are some. If not, their
            numbers are not looked at.

    Raises:
        ValueError: If they are anything else, or not finite.
    """
    parts, at, count = [], 0, manifest.pairs_per_shard
    for sample in samples:
        key, size = f"{first + at:09d}", min(manifest.pack, count - at)
        if size < 1 or sample["__key__"] != key:
            raise ValueError(f"pair {str(sample['__key__'])[:50]!r} where {key} should be")
        parts.append(_decode(sample, size, manifest))
        at += size
    if at != count:
        raise ValueError(f"{at} pairs")
    kept = (0, 1, 3) if states and manifest.trajectory else (0, 1)
    arrays = [np.concatenate([part[i] for part in parts]) for i in kept]
    if "image.png" in kinds(manifest):
        arrays[1] = decode_rows(arrays[1], manifest.image_shape)
    noise, images, *path = map(torch.from_numpy, arrays)
    if not all(map(_finite, (noise, images, *path))):
        raise ValueError("numbers that are not finite")
    labels = None
    if (num_classes := manifest.num_classes) is not None:
        labels = torch.from_numpy(np.concatenate([part[2] for part in parts]))
        if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"labels outside 0 to {num_classes - 1}")
    return Pairs(noise, images, labels, *path)


def _finite(numbers: Tensor) -> bool:
    """Say whether all are finite; the sum, which is quick, says so of most."""
    return not numbers.is_floating_point() or bool(
        numbers.sum(dtype=torch.float32).isfinite() or numbers.isfinite().all()
    )


def kinds(manifest: Manifest) -> list[str]:
    """Return what the members of a sample are called after its key, sorted."""
    packed = manifest.pack > 1
    labels = [] if manifest.num_classes is None else ["cls.npy" if packed else "cls"]
    png = manifest.image_format == "png" and not packed
    states = ["states.npy"] if manifest.trajectory else []
    return [*labels, "image.png" if png else "image.npy", "latent.npy", *states]


def _decode(
    sample: Mapping[str, Any], size: int, manifest: Manifest
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return noise (float32), images, labels and states of one member, a row per pair.

    A PNG comes as its filtered rows (png.py).
    """
    if (names := sorted(name for name in sample if name[:2] != "__")) != kinds(manifest):
        raise ValueError(f"members {', '.join(names)[:100]} of a pair")
    rows = (size, *manifest.image_shape)
    shape = rows if manifest.pack > 1 else manifest.image_shape
    noise = _array(sample["latent.npy"], "<f4", shape).reshape(rows)
    if "image.png" in names:
        images = read_rows(sample["image.png"], manifest.image_shape)[None]
    else:
        images = _array(sample["image.npy"], DTYPES[manifest.image_format], shape).reshape(rows)
    labels = np.zeros(0, np.int64)
    if "cls.npy" in names:
        labels = _array(sample["cls.npy"], "<i8", (size,))
    elif "cls" in names:
        if not re.fullmatch(rb"[0-9]{1,10}", digits := bytes(sample["cls"])):
            raise ValueError(f"a label {digits[:20]!r}")
        labels = np.array([int(digits)])
    path = np.zeros(0, np.float16)
    if "states.npy" in names:
        each = (len(manifest.trajectory), *manifest.image_shape)
        stack = (size, *each)
        path = _array(sample["states.npy"], "<f2", stack if manifest.pack > 1 else each)
        path = path.reshape(stack)
    return noise, images, labels, path


DTYPES = {"png": "|u1", "npy": "<f2", "npy32": "<f4"}
"""How images are stored in arrays; a PNG becomes the same as its array."""


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array of this type and shape: its header is compared, never parsed."""
    start, expected = 10 + int.from_bytes(data[8:10], "little"), _header(dtype, shape)
    header = bytes(data[:start]) if start < 1000 else b""
    if header[:8] != b"\x93NUMPY\1\0" or header[10:].rstrip(b" \n") != expected:
        raise ValueError(f"an array of {header[10:110]!r} instead of {expected!r}")
    if len(data) != start + np.dtype(dtype).itemsize * prod(shape):
        raise ValueError(f"{len(data)} bytes of an array of {shape} {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=64)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header that numpy writes, without padding."""
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
