"""Small data sets of pairs that several tests share: written, read, served over http."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from data.data_set import open_data_set
from data.manifest import ImageFormat, Manifest
from data.mixture import Mixture
from data.order import Order
from data.pair_settings import PairSettings
from data.pairs import Pairs
from data.reader import batches
from data.store import Source
from data.teachers.teacher import Teacher
from data.writer import describe, write_shards
from get.noise import draw

from .problems import Softsign

PAIRS = 6  # per shard; the teacher makes 4 and 2
SHARDS = 8
WORLDS = [(p, w) for p in (1, 2, 4, 8) for w in (0, 1, 2, 4, 8) if 8 % (p * max(w, 1)) == 0]
"""Processes and loader workers that 8 streams can be shared among."""
IN_PROCESSES = [  # for tests that start some
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on one core
]


# ---------------------------------------------------------------- writing


def manifest_of(teacher: Teacher, form: ImageFormat = "npy32", **settings: int) -> Manifest:
    sizes: dict[str, Any] = {"teacher_batch_size": 4, "pairs_per_shard": PAIRS, **settings}
    return describe(
        teacher, PairSettings(teacher="", output_dir=Path(), image_format=form, **sizes)
    )


def write_pairs(
    folder: Path,
    shards: int = SHARDS,
    form: ImageFormat = "npy32",
    teacher: Teacher | None = None,
    **settings: int,
) -> Path:
    """Write a data set and return its folder."""
    teacher = teacher or Softsign()
    open_data_set(folder, manifest := manifest_of(teacher, form, **settings))
    write_shards(folder, range(shards), teacher, manifest)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests only read."""
    return write_pairs(tmp_path_factory.mktemp("the pairs"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder in which others may be writing."""
    files = {}
    for path in sorted(folder.iterdir()):
        with suppress(FileNotFoundError):  # a temporary file that has been renamed since
            files[path.name] = path.read_bytes()
    return files


# ---------------------------------------------------------------- reading


ORDER: dict[str, Any] = {
    "shards": SHARDS,
    "pairs_per_shard": PAIRS,
    "seed": 0,
    "streams": 8,
    "batch_size": 16,
}


def order(source: Source, **changes: Any) -> Order:
    return Order(source=source, **ORDER | changes)


def read(order: Order | Mixture, steps: int, *, processes: int = 1, **options: Any) -> list[Pairs]:
    """Return global batches: those of all processes, concatenated."""
    loaders = (
        batches(order, rank=rank, processes=processes, **options) for rank in range(processes)
    )
    ranks = [list(islice(loader, steps)) for loader in loaders]
    return [Pairs.cat(parts) for parts in zip(*ranks, strict=True)]


def indices(batches: list[Pairs], count: int = SHARDS * PAIRS) -> list[int]:
    """Return the indices of pairs, known by their noise."""
    noise, _ = draw(0, range(count), (1, 4, 4))
    index = {float(x): i for i, x in enumerate(noise[:, 0, 0, 0])}
    return [index[float(x)] for batch in batches for x in batch.noise[:, 0, 0, 0]]


FIELDS = ("noise", "images", "labels")


def same(first: list[Pairs], second: list[Pairs]) -> bool:
    """Compare labelled batches bit by bit."""
    return all(
        a is not None and b is not None and torch.equal(a, b)
        for ours, theirs in zip(first, second, strict=True)
        for a, b in ((getattr(x, name) for x in (ours, theirs)) for name in FIELDS)
    )


# ---------------------------------------------------------------- serving


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(handler: Callable) -> Iterator[str]:
    """Serve with a handler on a free port; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
