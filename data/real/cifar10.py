"""CIFAR-10 from a local folder: its "python version" or its "binary version", unpacked.

Papers compare with the training images (50,000) or with the test images (10,000); FID differs by
about 2 between them, so both have names here: `cifar10-train` and `cifar10-val`.
The python version consists of pickles; they are read as data, nothing in them is run.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from data.real.labelled import Split
from data.teachers.edm.pickle_machine import Dialect, Refused, Symbol, load
from get.errors import InputError

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py", ".")
PIXELS, EACH, CLASSES = 3 * 32 * 32, 10_000, 10
BATCHES: dict[Split, tuple[str, ...]] = {
    "training": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "held_out": ("test_batch",),
}

Read = tuple[UInt8[Tensor, "images 3 32 32"], Int[Tensor, " images"]]


def find_cifar10(root: Path) -> Path | None:
    """Return the folder, `root` or one in it, with the files of CIFAR-10; None if there is none."""
    names = [f"{BATCHES['training'][0]}{suffix}" for suffix in ("", ".bin")]
    folders = [root / folder for folder in FOLDERS]
    return next((f for f in folders if any((f / name).is_file() for name in names)), None)


def read_cifar10(root: Path, split: Split) -> Read:
    """Return the training (50,000) or test images (10,000) and their classes.

    Raises:
        InputError: If they are not there, or are not whole.
    """
    if (folder := find_cifar10(root)) is None:
        raise InputError(
            f"expected cifar-10-batches-bin or cifar-10-batches-py in {root}, got neither; unpack "
            f"CIFAR-10 ({ADDRESS}) there"
        )
    parts = [_batch(folder / name) for name in BATCHES[split]]
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    counts = torch.bincount(labels, minlength=CLASSES)
    if len(counts) != CLASSES or (counts != len(labels) // CLASSES).any():
        raise InputError(
            f"expected as many images of every class in {folder}, got {counts.tolist()}; "
            "the files are damaged or not CIFAR-10: unpack it again"
        )
    return images, labels


def _batch(path: Path) -> Read:
    binary = path.with_suffix(".bin")
    name = binary if binary.is_file() else path
    try:
        content = name.read_bytes()
        pixels, labels = _records(content) if name == binary else _pickle(content)
    except (OSError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    except Refused as error:
        problem = str(error)
    else:
        return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.from_numpy(labels)
    raise InputError(
        f"expected {EACH} images of CIFAR-10 in {name}, got {problem[:200]}; unpack it again"
    )


def _records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the binary version: a byte for the class, then red, green and blue pixels."""
    rows = np.frombuffer(content, np.uint8)
    if len(rows) != EACH * (1 + PIXELS):
        raise ValueError(f"{len(rows)} bytes instead of {EACH * (1 + PIXELS)}")
    rows = rows.reshape(EACH, 1 + PIXELS)
    return rows[:, 1:].copy(), rows[:, 0].astype(np.int64)


class _Array:
    """What the pickle of an array fills in."""

    content: bytes | None = None


def _pickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the python version: a dictionary with an array and a list of classes."""
    found = load(io.BytesIO(content), len(content), _DIALECT)
    match found:
        case {"data": _Array(content=bytes(data)), "labels": list(labels)} if (
            len(data) == EACH * PIXELS and len(labels) == EACH
        ):
            pixels = np.frombuffer(data, np.uint8).copy()
            return pixels, np.array(labels, dtype=np.int64)
    raise ValueError("a pickle of something else")


def _call(symbol: Symbol, arguments: object) -> Any:
    match symbol.name, arguments:
        case "_reconstruct", (Symbol(name="ndarray"), (0,), _):
            return _Array()
        case "dtype", ("u1", _, _):
            return {}
    raise Refused(f"a call of {symbol} with unknown arguments; it is damaged or made to harm")


def _fill(target: Any, state: Any) -> None:
    match target, state:
        case _Array(content=None), (1, (int(rows), int(columns)), dict(), False, str(data)) if (
            rows,
            columns,
        ) == (EACH, PIXELS):
            target.content = data.encode("latin-1")
        case dict(), (3, str(), *_) if not target:  # of the dtype
            pass
        case _:
            raise Refused("a pickle that fills something it may not; it is made to harm")


_DIALECT = Dialect(
    frozenset(
        {
            Symbol("numpy.core.multiarray", "_reconstruct"),
            Symbol("numpy", "ndarray"),
            Symbol("numpy", "dtype"),
        }
    ),
    _call,
    _fill,
)
