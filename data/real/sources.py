"""Images in a fixed order, of which any range can be read: what features are computed of.

A source has a fingerprint of its content, under which its features are kept. References, with
which generated images are compared, are named like this:

    cifar10-train, cifar10-val     CIFAR-10 in a local folder (cifar10.py)
    digits-train, photos-val, ...  the embedded sets
    a folder of pictures           all of them, sub-folders too
    a data set of pairs            the images of the teacher
    statistics.npz                 mean and covariance alone, as NVlabs EDM keeps them
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from data.manifest import count_shards, read_manifest, read_record
from data.reader import read_shard
from data.real import real_images
from data.real.cifar10 import read_cifar10
from data.real.folder import SUFFIXES
from data.real.labelled import Split
from data.store import open_store
from get.errors import InputError
from get.images import from_pil, from_uint8, to_uint8
from get.metrics.streaming import Gaussian


class Decoder(NamedTuple):
    """Turns latents into images in [-1, 1].

    Attributes:
        run: Does it.
        fingerprint: Of the weights.
    """

    run: Callable[[Tensor], Tensor]
    fingerprint: str


SPLITS: dict[str, Split] = {"train": "training", "val": "held_out"}
EMBEDDED = ("digits", "photos")

Part = tuple[Float[Tensor, "images channels height width"], Int[Tensor, " images"] | None]


@dataclass(frozen=True)
class ImageSource(ABC):
    """Images in a fixed order.

    Attributes:
        name: What results call it.
        fingerprint: Of its content.
        shape: Channels, height, width of every image.
        count: How many there are.
    """

    name: str
    fingerprint: str
    shape: tuple[int, int, int]
    count: int

    @abstractmethod
    def read(self, start: int, stop: int) -> Part:
        """Return some images in [-1, 1] and their labels, if they have any."""


@dataclass(frozen=True, eq=False)
class Stored(ImageSource):
    """Images in memory."""

    images: Tensor
    labels: Tensor | None

    def read(self, start: int, stop: int) -> Part:
        """Return some of them."""
        images = self.images[start:stop]
        labels = None if self.labels is None else self.labels[start:stop]
        return from_uint8(images) if images.dtype == torch.uint8 else images, labels


@dataclass(frozen=True, eq=False)
class Pictures(ImageSource):
    """Picture files of one size; with a grey one among coloured ones, all are coloured."""

    files: tuple[Path, ...]

    def read(self, start: int, stop: int) -> Part:
        """Decode some of them."""
        return from_uint8(torch.stack([self._read(path) for path in self.files[start:stop]])), None

    def _read(self, path: Path) -> Tensor:
        mode = "L" if self.shape[0] == 1 else "RGB"
        try:
            with Image.open(path) as image:
                return from_pil(image.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise _damaged(path, error) from error


@dataclass(frozen=True, eq=False)
class PairImages(ImageSource):
    """The images of a data set of pairs, as 8-bit pictures hold them."""

    pairs_per_shard: int
    decoder: Decoder | None
    where: str

    def read(self, start: int, stop: int) -> Part:
        """Read the shards of this range; latents are decoded."""
        images, labels = [], []
        for shard in range(start // self.pairs_per_shard, -(-stop // self.pairs_per_shard)):
            first = shard * self.pairs_per_shard
            pairs = _read_shard(self.where, shard).take(slice(max(start - first, 0), stop - first))
            images.append(pairs.as_floats().images)
            labels.append(pairs.labels)
        made = torch.cat(images)
        if self.decoder is not None:
            made = self.decoder.run(made)
        known = [part for part in labels if part is not None]
        return from_uint8(to_uint8(made)), torch.cat(known) if known else None


_read_shard = lru_cache(1)(read_shard)


def open_source(
    name: str, datasets: Path, decoder: Decoder | None = None
) -> ImageSource | Gaussian:
    """Return the images, or the statistics, of a name; see above.

    Args:
        name: What the user calls them.
        datasets: The folder in which CIFAR-10 lies.
        decoder: For pairs of latents; None refuses them.

    Raises:
        InputError: If there is nothing of this name, or it cannot be used.
    """
    stem, _, split = name.rpartition("-")
    if split in SPLITS and stem == "cifar10":
        folder = datasets / name
        return _pictures(name, folder) if folder.is_dir() else _cifar10(name, datasets)
    if split in SPLITS and stem in EMBEDDED:
        return _stored(name, *real_images(stem, SPLITS[split]))
    path = Path(name)
    if path.suffix == ".npz":
        return _statistics(path)
    if "://" in name or name.startswith("pipe:") or (path / "manifest.json").is_file():
        return _pairs(name, decoder)
    if path.is_dir():
        return _pictures(name, path)
    raise InputError(
        f"expected images (cifar10-train, digits-val, a folder of pictures or of pairs, an .npz of "
        f"statistics), got {name}; there is no such folder"
    )


def _cifar10(name: str, datasets: Path) -> Stored:
    return _stored(name, *read_cifar10(datasets, SPLITS[name.rpartition("-")[2]]))


def _stored(name: str, images: Tensor, labels: Tensor | None) -> Stored:
    digest = sha256(images.numpy().tobytes()).hexdigest()
    return Stored(name, digest, _shape(images), len(images), images, labels)


def _shape(images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    return channels, height, width


def _pictures(name: str, root: Path) -> Pictures:
    """Look at every picture's head; hash their contents."""
    files = tuple(p for p in sorted(root.rglob("*")) if p.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise InputError(
            f"expected pictures ({', '.join(SUFFIXES)}) in {root}, got {len(files)}; "
            "name another folder"
        )
    digest, sizes, grey = sha256(), dict[tuple[int, int], Path](), True
    for path in files:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
                grey = grey and image.mode == "L"
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(sha256(path.read_bytes()).digest())
        except OSError as error:
            raise _damaged(path, error) from error
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h} ({path.name})" for (w, h), path in list(sizes.items())[:3])
        raise InputError(
            f"expected pictures of one size in {root}, got {found}; crop and resize them first"
        )
    ((width, height),) = sizes
    shape = (1 if grey else 3, height, width)
    return Pictures(name, digest.hexdigest(), shape, len(files), files)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"expected a picture in {path}, got {type(error).__name__}; remove or replace it"
    )


def _pairs(name: str, decoder: Decoder | None) -> PairImages:
    store = open_store(name)
    manifest, shards = read_manifest(store), count_shards(store)
    records = [read_record(store, shard) for shard in range(shards)]
    if not shards or None in records:
        raise InputError(f"expected whole shards in {name}, got {shards}; run verify_pairs.py")
    if latents := manifest.image_shape[0] not in (1, 3):
        if decoder is None:
            raise InputError(
                f"expected pairs of images in {name}, got latents; only a model with a VAE of "
                "its own, evaluated in the same command, can decode them"
            )
        shape = _shape(decoder.run(torch.zeros(1, *manifest.image_shape)))
    else:
        shape = manifest.image_shape
    digest = sha256(manifest.teacher.encode())
    if latents and decoder is not None:
        digest.update(decoder.fingerprint.encode())
    for record in records:
        assert record is not None
        digest.update(record.sha256.encode())
    size = manifest.pairs_per_shard
    return PairImages(
        *(name, digest.hexdigest(), shape, shards * size),
        *(size, decoder if latents else None, name),
    )


def _statistics(path: Path) -> Gaussian:
    """Read mean and covariance, `mu` and `sigma` in the files of EDM and others."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[key].astype("f8")) for key in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(
            f"expected mu and sigma in {path}, got {type(error).__name__}: {str(error)[:100]}; "
            "name another file"
        ) from error
    if mean.dim() != 1 or covariance.shape != (len(mean),) * 2:
        raise InputError(
            f"expected mu of n and sigma of n x n numbers in {path}, got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}; name another file"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise InputError(f"expected finite statistics in {path}, got others; name another file")
    return Gaussian(mean, covariance, None)
