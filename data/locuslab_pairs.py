"""Pairs in the layout of locuslab/get, `latent/*.pkl` and `image/*.pkl`, to a data set of ours.

Files of one name belong together. An image file is one tensor, the sampler's raw output. A latent
file is one tensor of unit normal noise, or in a conditional data set a list of noise and one-hot
labels. `pipeline/convert.py get_pairs` is the command.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.data_set import open_data_set
from data.files import write_json
from data.manifest import ImageFormat, Manifest, read_record, record_path
from data.pairs import Pairs
from data.torch_file import StoredTensor, open_torch_file
from data.writer import write_given
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
    """Return the files of a data set in the order of locuslab/get: by the number in the name.

    Raises:
        InputError: If there are none, a name has no number, or one is in one sub-folder only.
    """
    latents, images = (
        {path.name for path in (folder / kind).glob("*.pkl")} for kind in ("latent", "image")
    )
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
    if others := [name for name in latents if not re.match(r"[0-9]+\.", name)]:
        raise InputError(
            f"expected names like 000012499.pkl in {folder}, got {others[0]}; move it elsewhere"
        )
    ordered = sorted(latents, key=lambda name: (int(name.split(".")[0]), name))
    return [PairFile(folder / "latent" / name, folder / "image" / name) for name in ordered]


def read_pairs(file: PairFile) -> tuple[Pairs, int | None]:
    """Read and check the pairs of one name; return them and the number of classes, if labelled."""
    latents, (images,) = _read(file.latent, labelled=True), _read(file.image)
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
    return Pairs(noise, images, _labels(latents[1], shape[0], file)), latents[1].shape[1]


def _read(path: Path, labelled: bool = False) -> list[Tensor]:
    """Return the tensor of a file, or noise and one-hot labels if it may be labelled."""
    with open_torch_file(path) as content:
        match content:
            case StoredTensor():
                return [content.read()]
            case [StoredTensor() as noise, StoredTensor() as labels] if labelled:
                return [noise.read(), labels.read()]
        expected = "a tensor, or a list of noise and one-hot labels," if labelled else "a tensor"
        raise InputError(
            f"expected {expected} in {path}, got {type(content).__name__}; "
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


def convert(
    files: list[PairFile],
    folder: Path,
    *,
    image_format: ImageFormat,
    pairs_per_shard: int,
    pack: int,
    progress: Callable[[], object],
) -> tuple[int, int]:
    """Write the pairs of old files in complete shards, one old file in memory at a time.

    The manifest has the hash of the old files in place of a teacher: nobody can make these pairs
    again, and `verify_pairs --deep` says so. Sampler, evaluations and batch are those of
    locuslab/get. Its noise is that of no seed; with 0, evaluation has one for the random start of
    a GET. The folder is empty; `progress` is called after every old file.

    Returns:
        The number of shards, and of the pairs at the end that do not fill one.

    Raises:
        InputError: If a file cannot be read or has other images than those before.
    """
    digest, shards = hashlib.sha256(), 0
    parts, count = list[Pairs](), 0  # of the unfinished shard
    manifest: Manifest | None = None
    for file in files:
        digest.update(file.digest())
        pairs, num_classes = read_pairs(file)
        channels, height, width = pairs.noise.shape[1:]
        shape = channels, height, width
        manifest = manifest or Manifest(
            teacher="",  # known once all files are read
            sampler={"steps": 18},
            evaluations=35,
            seed=0,
            teacher_batch_size=250,
            image_shape=shape,
            num_classes=num_classes,
            image_format=image_format,
            pairs_per_shard=pairs_per_shard,
            pack=pack,
            imported=True,
        )
        if (shape, num_classes) != (manifest.image_shape, manifest.num_classes):
            raise InputError(
                f"expected images of {manifest.image_shape} and classes {manifest.num_classes} in "
                f"{file.latent} as in the files before, got {shape} and {num_classes}; "
                "keep data sets apart"
            )
        at = 0
        while at < len(pairs):
            parts.append(pairs.take(slice(at, at + pairs_per_shard - count)))
            at, count = at + len(parts[-1]), count + len(parts[-1])
            if count == pairs_per_shard:
                write_given(folder, shards, manifest, Pairs.cat(parts))
                shards, parts, count = shards + 1, [], 0
        if parts:  # a copy: a slice would keep the whole file in memory
            parts[-1] = parts[-1].take(torch.arange(len(parts[-1])))
        del pairs  # before the next file is read
        progress()
    if manifest is not None and shards:
        manifest = replace(manifest, teacher=digest.hexdigest())
        for shard in range(shards):
            record = read_record(folder, shard)
            assert record is not None, "written above"
            record = replace(record, manifest=manifest.identity)
            write_json(record_path(folder, shard), record.as_json())
        open_data_set(folder, manifest)
    return shards, count
