"""Data sets of 100,000 shards: what a job and a training do before their work.

The shards are there as far as these look: records, and tars of the right size without content. What
depends on the content is measured elsewhere (`reader`, `writer`) and grows with the pairs alone.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from data.claims import missing_shards, read_claims
from data.data_set import open_data_set
from data.manifest import Manifest, ShardRecord, count_shards, record_path, tar_path
from data.order import Order
from pipeline import cli
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.tables import markdown as markdown_table

BYTES_PER_PAIR = 17_410  # 3x32x32 with 8-bit images, from the benchmark `reader`


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(BenchmarkConfig):
    """Measure what grows with the number of shards of a data set.

    Attributes:
        shards: How many.
        pairs_per_shard: Pairs in each.
        batch_size: Global batch of the training whose order is computed.
        steps: Steps of it.
    """

    shards: int = 100_000
    pairs_per_shard: int = 10_000
    batch_size: int = 1024
    steps: int = 2000


def main(config: ScaleConfig) -> None:
    """Make such a folder, look at it in every way, delete it; write a JSON file."""
    manifest = Manifest(
        teacher="0" * 64, sampler={"steps": 18}, evaluations=35, seed=0, teacher_batch_size=1000,
        image_shape=(3, 32, 32), num_classes=10, image_format="png",
        pairs_per_shard=config.pairs_per_shard, pack=1,
    )  # fmt: skip
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.output_dir) as name:
        folder = Path(name)
        open_data_set(folder, manifest)
        make_shards(folder, manifest, config.shards)
        order = Order(
            shards=config.shards, pairs_per_shard=config.pairs_per_shard,
            batch_size=config.batch_size, streams=8, seed=0, source=str(folder),
        )  # fmt: skip
        before = peak_bytes()
        seconds = {
            "a training counts the shards": timed(lambda: count_shards(folder)),
            "a job looks for missing shards": timed(
                lambda: list(missing_shards(folder, range(config.shards)))
            ),
            "the claims of other jobs are read": timed(lambda: read_claims(folder)),
            "the order of a step deep in an epoch": timed(lambda: order.indices(10**5)),
            f"the order of {config.steps:,} steps": timed(lambda: all_steps(order, config.steps)),
        }
    figures = {
        "shards": config.shards,
        "pairs": config.shards * config.pairs_per_shard,
        "objects": 2 * config.shards + 1,
        "bytes": BYTES_PER_PAIR * config.shards * config.pairs_per_shard,
        "seconds": seconds,
        "additional_peak_bytes": peak_bytes() - before,
    }
    print(markdown(save(config, "scale", figures)))


def make_shards(folder: Path, manifest: Manifest, shards: int) -> None:
    """Write records, and tars that are holes of the right size."""
    size, count = BYTES_PER_PAIR * manifest.pairs_per_shard, manifest.pairs_per_shard
    with cli.progress_bar(shards, "scale", "shard") as bar:
        for shard in range(shards):
            with tar_path(folder, shard).open("wb") as tar:
                tar.truncate(size)
            record = ShardRecord(
                count=count, first_index=shard * count, sha256="0" * 64, bytes=size,
                manifest=manifest.identity,
            )  # fmt: skip
            record_path(folder, shard).write_text(json.dumps(record.as_json()))
            bar.update()


def all_steps(order: Order, steps: int) -> None:
    """Compute which pairs the steps of a training read."""
    for step in range(steps):
        order.part(step, range(order.batch_size))


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    rows = [
        ["what", f"{result['shards']:,} shards, {result['pairs']:,} pairs"],
        ["objects", f"{result['objects']:,}"],
        ["bytes, 3x32x32 with 8-bit images", f"{result['bytes'] / 1e12:.3g} TB"],
        *([name, f"{seconds:.2g} s"] for name, seconds in result["seconds"].items()),
        ["memory that all this adds", f"{result['additional_peak_bytes'] / 2**20:.0f} MiB"],
    ]
    return markdown_table(rows)
