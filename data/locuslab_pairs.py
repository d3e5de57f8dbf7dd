"""Pairs in the layout of locuslab/get: `latent/*.pkl` and `image/*.pkl`, read file by file.

Files of one name belong together. An image file is one tensor of the sampler's raw output. A
latent file is one tensor of unit normal noise, or in a conditional data set a list of noise and
one-hot labels. `pipeline/convert.py get_pairs` makes a data set in our contract of them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.pairs import Pairs
from data.torch_file import StoredTensor, open_torch_file
from get.errors import InputError

BRIGHTEST = 10.0  # images in [-1, 1] overshoot a little; those in 0 to 255 are another layout


class PairFile(NamedTuple):
    """The two files of one name."""

    latent: Path
    image: Path

    def digest(self) -> bytes:
        """Return a hash of the bytes of both."""
        total = hashlib.sha256()
        for path in self:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.digest()


def find_files(folder: Path) -> list[PairFile]:
    """Return the files of a data set in the order of the reference: by the number in the name.

    Raises:
        InputError: If there are none, a name has no number, or one is in one sub-folder only.
    """
    names = {kind: {p.name for p in (folder / kind).glob("*.pkl")} for kind in ("latent", "image")}
    latents, images = names["latent"], names["image"]
    if not latents | images:
        raise InputError(
            f"expected latent/*.pkl and image/*.pkl in {folder}, got none; check the path"
        )
    if single := sorted(latents ^ images):
        where = "image" if single[0] in latents else "latent"
        raise InputError(
            f"expected the same names in latent/ and image/ of {folder}, got no {where}/"
            f"{single[0]} ({len(single)} names are in one alone); complete the copy"
        )
    for name in latents:
        number = name.split(".")[0]
        if not (number.isascii() and number.isdigit()):
            raise InputError(
                f"expected names like 000012499.pkl in {folder}, got {name}; move it elsewhere"
            )
    ordered = sorted(latents, key=lambda name: (int(name.split(".")[0]), name))
    return [PairFile(folder / "latent" / name, folder / "image" / name) for name in ordered]


def read_pairs(file: PairFile) -> tuple[Pairs, int | None]:
    """Read and check the pairs of one name; return them and the number of classes, if labelled.

    Raises:
        InputError: If a file cannot be read or the two do not belong together.
    """
    with open_torch_file(file.latent) as content:
        latents = [_tensor(part, file.latent) for part in _parts(content, file.latent)]
    with open_torch_file(file.image) as content:
        images = _tensor(content, file.image)
    noise, shape = latents[0], tuple(latents[0].shape)
    if noise.dtype != torch.float32 or noise.ndim != 4 or shape[2] != shape[3]:
        raise InputError(
            f"expected float32 noise of (pairs, channels, side, side) in {file.latent}, got "
            f"{noise.dtype} of {shape}; it is no data set of locuslab/get"
        )
    if images.dtype not in (torch.float32, torch.float64) or tuple(images.shape) != shape:
        raise InputError(
            f"expected float32 or float64 images of {shape} as in {file.latent} in {file.image}, "
            f"got {images.dtype} of {tuple(images.shape)}; complete the copy"
        )
    bounds = torch.stack(images.aminmax())
    if not (torch.stack(noise.aminmax()).isfinite().all() and (bounds.abs() <= BRIGHTEST).all()):
        raise InputError(
            f"expected finite noise and images about [-1, 1] in {file.latent} and {file.image}, "
            "got others; scale the images or make them again"
        )
    if len(latents) == 1:
        return Pairs(noise, images, None), None
    labels = _labels(latents[1], shape[0], file)
    return Pairs(noise, images, labels), latents[1].shape[1]


def _parts(content: Any, path: Path) -> list[Any]:
    """Return noise and, in a conditional data set, one-hot labels."""
    match content:
        case StoredTensor():
            return [content]
        case [noise, labels]:
            return [noise, labels]
    raise InputError(
        f"expected a tensor, or a list of noise and one-hot labels, in {path}, got "
        f"{type(content).__name__}; it is no data set of locuslab/get"
    )


def _tensor(content: Any, path: Path) -> Tensor:
    if isinstance(content, StoredTensor):
        return content.read()
    raise InputError(
        f"expected a tensor in {path}, got {type(content).__name__}; "
        "it is no data set of locuslab/get"
    )


def _labels(rows: Tensor, count: int, file: PairFile) -> Tensor:
    """Return the class of every one-hot row."""
    if rows.ndim == 2 and len(rows) == count:
        ones = rows == 1
        if (ones | (rows == 0)).all() and (ones.sum(1) == 1).all():
            return rows.argmax(1)
    raise InputError(
        f"expected {count} rows of one-hot labels in {file.latent}, got {rows.dtype} of "
        f"{tuple(rows.shape)} that is something else; it is no data set of locuslab/get"
    )


def in_sizes_of(size: int, pieces: Iterable[Pairs]) -> Iterator[Pairs]:
    """Yield pairs in order, `size` at a time; the last may be fewer.

    No more than one piece and `size` pairs are kept, if the pieces are made when asked for.
    """
    left: Pairs | None = None
    for piece in pieces:
        at, end = 0, len(piece)
        if left is not None:
            at = min(size - len(left), end)
            left = Pairs.cat([left, piece.take(slice(at))])
            if len(left) == size:
                yield left
                left = None
        while at + size <= end:
            yield piece.take(slice(at, at + size))
            at += size
        if at < end:  # then nothing is left from before
            left = piece.take(torch.arange(at, end))  # a copy: a slice would keep the whole piece
        del piece  # before the next one is read
    if left is not None:
        yield left
