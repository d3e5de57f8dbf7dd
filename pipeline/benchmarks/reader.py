"""Speed of our reader compared with webdataset's own decoding of the same pairs, and of resuming.

One process, one thread, pairs per second from shards on disk to batches of floats; all ways take
turns, and the fastest pass of each counts. Pairs per second of CPU time do not depend on what else
the machine does. webdataset gets what its users write: decode, to_tuple, batched, without scaling
to [-1, 1] and without any check. Ours compares each shard's sha256.

With loader workers the first epoch is not counted, and every shard is decoded again in each.
Waiting is what a training of a given time a step waits for PNG pairs while all its streams change
their shards, not counting the first batch.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
import webdataset
from torch import Tensor

from data.data_set import open_data_set
from data.manifest import ImageFormat, Manifest, read_manifest, tar_path
from data.order import Order
from data.pairs import Pairs
from data.reader import batches
from data.shard_memory import decoded_bytes
from data.writer import write_given
from get.cost import in_turns
from get.errors import InputError
from get.noise import draw
from pipeline.benchmarks.results import BenchmarkConfig, save

SHARDS = 8
SHAPE, CLASSES = (3, 32, 32), 10
ENCODINGS: dict[str, tuple[ImageFormat, bool]] = {  # name: image format, packed
    "png": ("png", False),
    "npy": ("npy", False),
    "png, packed": ("png", True),
    "npy, packed": ("npy", True),
}
FAR = 1_000_000  # a step to resume at
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class ReaderConfig(BenchmarkConfig):
    """Compare our reader with webdataset's own decoding of the same pairs.

    Attributes:
        num_pairs: Pairs written (into a temporary folder) and read; 8 shards share them.
        batch_size: Pairs per batch, and per member of the packed encodings.
        repeats: Passes of each way, of which the fastest counts.
        step_seconds: What a training step takes where waiting is measured.
    """

    num_pairs: int = 8192
    batch_size: int = 256
    repeats: int = 5
    step_seconds: float = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        super().__post_init__()
        if self.batch_size % SHARDS or self.num_pairs % self.batch_size:
            raise InputError(
                f"expected batch_size a multiple of {SHARDS} that divides num_pairs, got "
                f"{self.batch_size} and {self.num_pairs}"
            )


def main(config: ReaderConfig) -> None:
    """Write the pairs in every encoding, read them in every way; write a JSON file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        orders = {name: write(Path(folder) / name, name, config) for name in ENCODINGS}
        steps = config.num_pairs // config.batch_size
        ways: dict[str, Callable[[], int]] = {
            "webdataset": partial(read_webdataset, orders["png"], config.batch_size),
            **{name: partial(read_ours, order, steps) for name, order in orders.items()},
        }
        resumes: dict[str, Callable[[], int]] = {
            f"first batch at step {start}": partial(read_ours, orders["png"], 1, start)
            for start in (0, FAR)
        }
        timed = in_turns({**ways, **resumes}, config.repeats)
        seconds = {name: min(took.wall) for name, took in timed.items()}
        steady = {name: steady_rate(order, config.repeats) for name, order in orders.items()}
        more = write(Path(folder) / "more", "png", config, 2 * SHARDS)
        waited = {
            f"{workers} workers": waiting(more, workers, config.step_seconds)
            for workers in (0, WORKERS)
        }
        stored = {
            name: tar_path(Path(folder) / name, 0).stat().st_size * SHARDS / config.num_pairs
            for name in ENCODINGS
        }
    rates = {name: config.num_pairs / seconds[name] for name in ways}
    cpu_rates = {name: config.num_pairs / min(timed[name].cpu) for name in ways}
    figures = {
        "pairs": config.num_pairs,
        "image_shape": SHAPE,
        "batch_size": config.batch_size,
        "pack": config.batch_size,
        "pairs_per_second": rates,
        "pairs_per_cpu_second": cpu_rates,
        "over_webdataset": {name: rates[name] / rates["webdataset"] for name in ENCODINGS},
        "workers": WORKERS,
        "pairs_per_second_with_workers": steady,
        "step_seconds": config.step_seconds,
        "waiting": waited,
        "bytes_per_pair": stored,
        "seconds_to_first_batch": {name: seconds[name] for name in resumes},
    }
    save(config, "reader", figures)
    for name, rate in rates.items():
        print(
            f"{name:12} {rate:8.0f} pairs/s, {rate / rates['webdataset']:5.2f} x webdataset; "
            f"{cpu_rates[name]:8.0f} per second of CPU time"
        )
    for name, rate in steady.items():
        print(f"{name:12} {rate:8.0f} pairs/s with {WORKERS} loader workers")
    for name, found in waited.items():
        print(f"png, {name}: waits {found['share']:.1%}, {found['longest_seconds']:.3f} s at most")
    for name in resumes:
        print(f"{name}: {seconds[name]:.3f} s")


def write(folder: Path, name: str, config: ReaderConfig, shards: int = SHARDS) -> Order:
    """Write all pairs in one encoding and return an order to read them in."""
    form, packed = ENCODINGS[name]
    manifest = Manifest(
        teacher="blurred noise",
        sampler={},
        evaluations=1,
        seed=0,
        teacher_batch_size=config.batch_size,
        image_shape=SHAPE,
        num_classes=CLASSES,
        image_format=form,
        pairs_per_shard=config.num_pairs // SHARDS,
        pack=config.batch_size if packed else 1,
    )
    open_data_set(folder, manifest)
    for shard in range(shards):
        first = shard * manifest.pairs_per_shard
        noise, labels = draw(0, range(first, first + manifest.pairs_per_shard), SHAPE, CLASSES)
        write_given(folder, shard, manifest, Pairs(noise, blurred(noise), labels))
    return Order(
        source=folder,
        shards=shards,
        pairs_per_shard=manifest.pairs_per_shard,
        seed=0,
        streams=SHARDS,
        batch_size=config.batch_size,
    )


def blurred(noise: Tensor) -> Tensor:
    """Return smooth images in [-1, 1], which PNG compresses as it does real ones."""
    return F.interpolate(F.avg_pool2d(noise, 4) * 3, scale_factor=4, mode="bicubic").tanh()


def read_ours(order: Order, steps: int, start: int = 0) -> int:
    """Read this many batches with a reader that has nothing in memory; return the pairs read."""
    return sum(len(batch) for batch in islice(batches(order, start=start), steps))


def steady_rate(order: Order, epochs: int) -> float:
    """Return the pairs a second that loader workers decode: no shard stays in memory."""
    few = replace(order, streams=WORKERS)
    size = decoded_bytes(read_manifest(order.source))
    loader = batches(few, workers=WORKERS, limit=2 * WORKERS * size)
    steps = order.shards * order.pairs_per_shard // order.batch_size
    rates = []
    for _ in range(epochs + 1):
        began = time.perf_counter()
        deque(islice(loader, steps), maxlen=0)
        rates.append(steps * order.batch_size / (time.perf_counter() - began))
    return max(rates[1:])


def waiting(order: Order, workers: int, step_seconds: float) -> dict[str, float]:
    """Return what a training waits while all streams change their shards; see the top."""
    loader, waits = batches(order, workers=workers), []
    next(loader)
    for _ in range(order.pairs_per_shard * order.streams // order.batch_size + 8):
        time.sleep(step_seconds)
        began = time.perf_counter()
        next(loader)
        waits.append(time.perf_counter() - began)
    share = sum(waits) / (sum(waits) + step_seconds * len(waits))
    return {"share": share, "longest_seconds": max(waits)}


def read_webdataset(order: Order, batch_size: int) -> int:
    """Read all pairs as webdataset's documentation shows it; return their number."""
    paths = [str(tar_path(Path(str(order.source)), shard)) for shard in range(order.shards)]
    loader = (
        webdataset.WebDataset(paths, shardshuffle=False)
        .decode("torchrgb")
        .to_tuple("latent.npy", "image.png", "cls")
        .batched(batch_size)
    )
    # pyrefly: ignore[not-iterable]  webdataset's annotations forget the type
    return sum(len(noise) for noise, _, _ in loader)
