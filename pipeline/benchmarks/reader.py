"""Speed of our reader beside webdataset's own decoding of the same pairs, and of resuming.

One process, one thread, pairs per second from shards on disk to batches of floats; every way in
turn, of which the best time counts. webdataset gets what its users write: decode, to_tuple,
batched, without the scaling to [-1, 1] and without any check; ours compares each shard's sha256.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import webdataset
from torch import Tensor, nn

from data.files import write_json
from data.manifest import ImageFormat, count_shards, open_data_set, tar_path
from data.reader import Order, batches
from data.teachers.edm.precondition import Predict
from data.teachers.settings import Sampler
from data.teachers.teacher import Teacher
from data.writer import describe, write_shards
from get.errors import InputError
from pipeline import cli
from pipeline.jobs.provenance import provenance
from pipeline.recipes.settings_make import positive

SHARDS = 8
ENCODINGS: dict[str, tuple[ImageFormat, bool]] = {  # name: image format, packed
    "png": ("png", False),
    "npy": ("npy", False),
    "png, packed": ("png", True),
    "npy, packed": ("npy", True),
}
FAR = 1_000_000  # a step to resume at


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Compare our reader with webdataset's own decoding of the same pairs.

    Attributes:
        output_dir: Where reader.json goes.
        num_pairs: Pairs written (into a temporary folder) and read; 8 shards share them.
        batch_size: Pairs a batch, and pairs a member of the packed encodings.
        repeats: Passes of each way, in turn, of which the best time counts.
    """

    output_dir: Path
    num_pairs: int = 4096
    batch_size: int = 256
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        positive(num_pairs=self.num_pairs, batch_size=self.batch_size, repeats=self.repeats)
        if self.batch_size % 8 or self.num_pairs % self.batch_size:
            raise InputError(
                f"expected batch_size a multiple of 8 that divides num_pairs, got {self.batch_size}"
                f" and {self.num_pairs}"
            )


class OneCall:
    """The sampler of a network that makes an image in one evaluation."""

    evaluations = 1

    def __call__(self, predict: Predict, noise: Tensor) -> Tensor:
        """Return what the network makes of the noise."""
        return predict(noise, torch.zeros(len(noise)))


def blur(network: nn.Module, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    """Return smooth images in [-1, 1], which PNG compresses as it does real ones."""
    return F.interpolate(F.avg_pool2d(x, 4) * 3, scale_factor=4, mode="bicubic").tanh()


BLUR = Teacher(  # costs nothing
    network=nn.Identity(),
    call=blur,
    ode=OneCall(),
    image_shape=(3, 32, 32),
    num_classes=10,
    fingerprint="blur",
    sampler=Sampler(steps=1),
)


def main(config: ReaderConfig) -> None:
    """Write the pairs in every encoding, read them in every way; write a JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        orders = {name: write(Path(folder) / name, name, config) for name in ENCODINGS}
        steps = config.num_pairs // config.batch_size
        ways: dict[str, Callable[[], int]] = {
            "webdataset": lambda: read_webdataset(orders["png"], config.batch_size),
            **{name: lambda o=order: read_ours(o, steps) for name, order in orders.items()},
        }
        resumes = {
            f"first batch at step {start}": lambda s=start: read_ours(orders["png"], 1, s)
            for start in (0, FAR)
        }
        seconds = fastest({**ways, **resumes}, config.repeats)
        stored = {
            name: tar_path(Path(folder) / name, 0).stat().st_size * SHARDS / config.num_pairs
            for name in ENCODINGS
        }
    rates = {name: config.num_pairs / seconds[name] for name in ways}
    result: dict[str, Any] = {
        "pairs": config.num_pairs,
        "image_shape": BLUR.image_shape,
        "batch_size": config.batch_size,
        "pack": config.batch_size,
        "pairs_per_second": rates,
        "over_webdataset": {name: rates[name] / rates["webdataset"] for name in ENCODINGS},
        "bytes_per_pair": stored,
        "seconds_to_first_batch": {name: seconds[name] for name in resumes},
        **provenance(),
    }
    write_json(config.output_dir / "reader.json", result)
    for name, rate in rates.items():
        print(f"{name:12} {rate:8.0f} pairs/s, {rate / rates['webdataset']:5.2f} x webdataset")
    for name in resumes:
        print(f"{name}: {seconds[name]:.3f} s")
    print(f"reader {config.output_dir / 'reader.json'}")


def write(folder: Path, name: str, config: ReaderConfig) -> Order:
    """Write all pairs in one encoding and return an order to read them in."""
    form, packed = ENCODINGS[name]
    each = config.num_pairs // SHARDS
    manifest = describe(
        BLUR,
        seed=0,
        teacher_batch_size=config.batch_size,
        pairs_per_shard=each,
        image_format=form,
        pack=config.batch_size if packed else 1,
    )
    open_data_set(folder, manifest)
    write_shards(folder, range(SHARDS), BLUR, manifest)
    return Order(
        source=folder,
        shards=count_shards(folder),
        pairs_per_shard=each,
        seed=0,
        streams=SHARDS,
        batch_size=config.batch_size,
    )


def read_ours(order: Order, steps: int, start: int = 0) -> int:
    """Read so many batches with a reader that has nothing in memory; return the pairs read."""
    return sum(len(batch) for batch in islice(batches(order, start=start), steps))


def read_webdataset(order: Order, batch_size: int) -> int:
    """Read all pairs as webdataset's documentation shows it; return their number."""
    paths = [str(tar_path(Path(str(order.source)), shard)) for shard in range(order.shards)]
    loader = (
        webdataset.WebDataset(paths, shardshuffle=False)
        .decode("torchrgb")
        .to_tuple("latent.npy", "image.png", "cls")
        .batched(batch_size)
    )
    # pyrefly: ignore[not-iterable]  its type forgets what it is
    return sum(len(noise) for noise, _, _ in loader)


def fastest(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Return the least time of each, all called in turn."""
    seconds = dict.fromkeys(ways, float("inf"))
    with cli.progress_bar(repeats * len(ways), "reader", "pass") as bar:
        for _ in range(repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                seconds[name] = min(seconds[name], time.perf_counter() - began)
                bar.update()
    return seconds
