"""The members of a tar: pairs as the bytes of .npy and .png files, and back.

Nothing is ever unpickled. See manifest.py for the layout of a data set.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.manifest import ImageFormat
from data.pairs import Pairs
from get.images import from_pil, to_pil, to_uint8


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
        yield sample


def decode(samples: Iterable[Mapping[str, Any]], count: int) -> Pairs:
    """Return the `count` pairs of some members, images as stored.

    Raises:
        KeyError, ValueError, OSError: If a member is missing or damaged, or the shapes or numbers
            of noise, images and labels do not fit: a matching sha256 does not exclude that.
    """
    parts = [_decode(sample) for sample in samples]
    noise = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    images = torch.from_numpy(np.concatenate([part[1] for part in parts]))
    classes = [part[2] for part in parts if part[2] is not None]
    labels = torch.from_numpy(np.concatenate(classes)) if classes else None
    if noise.ndim != 4 or noise.shape != images.shape:
        raise ValueError(f"noise of {tuple(noise.shape)} and images of {tuple(images.shape)}")
    for rows in (noise, labels):
        if rows is not None and len(rows) != count:
            raise ValueError(f"{len(rows)} pairs")
    return Pairs(noise, images, labels)


def _decode(sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return noise (float32), images (as stored) and labels of one member, a row per pair."""
    noise = _array(sample["latent.npy"])
    if "image.png" in sample:
        with Image.open(io.BytesIO(sample["image.png"]), formats=("PNG",)) as picture:
            images = from_pil(picture).numpy()
    else:
        images = _array(sample["image.npy"])
    labels = None
    if "cls.npy" in sample:
        labels = _array(sample["cls.npy"])
    elif "cls" in sample:
        labels = np.array([int(sample["cls"])])
    packed = noise.ndim == 4
    return (noise, images, labels) if packed else (noise[None], images[None], labels)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes | memoryview) -> np.ndarray:
    """Read an array. Parsing its header takes longer than the rest, so headers are cached."""
    size = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _header(bytes(data[:size]))
    if len(data) != size + dtype.itemsize * prod(shape):
        raise ValueError(f"{len(data)} bytes of an array of {shape} {dtype}")
    return np.frombuffer(data, dtype, offset=size).reshape(shape)


@lru_cache(maxsize=64)
def _header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array format other than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError(f"an array of {dtype}, fortran order {fortran}")
    return dtype, shape
