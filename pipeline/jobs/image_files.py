"""Where sample.py puts images, and the files that others read them from: .npz and .tar."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset.writer import TarWriter

from data.files import new_file
from get.images import from_pil

IMAGES_PER_TAR = 1000


def image_path(folder: Path, number: int) -> Path:
    """Return where an image lies."""
    return folder / f"{number:09d}.png"


def write_npz(folder: Path, numbers: list[int], labels: list[int] | None) -> Path:
    """Put all images into images.npz, as programs that compute FID want them.

    `arr_0` holds them as (images, height, width, channels), 8 bits a channel, and `arr_1` the
    labels, if any. They pass through memory one by one.
    """
    first = _pixels(image_path(folder, numbers[0]))
    with new_file(folder / "images.npz") as path, zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False}
            np.lib.format.write_array_header_1_0(
                member, {**header, "shape": (len(numbers), *first.shape)}
            )
            for number in numbers:
                member.write(_pixels(image_path(folder, number)).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.array(labels, np.int64), allow_pickle=False)
    return folder / "images.npz"


def write_tars(folder: Path, numbers: list[int], labels: list[int] | None) -> Path:
    """Put all images into images-000000.tar and so on, which webdataset reads (png and cls)."""
    for at in range(0, len(numbers), IMAGES_PER_TAR):
        rows = range(at, min(at + IMAGES_PER_TAR, len(numbers)))
        target = folder / f"images-{at // IMAGES_PER_TAR:06d}.tar"
        with new_file(target) as path, TarWriter(str(path), mtime=0) as tar:
            for sample in _samples(folder, numbers, labels, rows):
                tar.write(sample)
    return folder / "images-000000.tar"


PACKED: dict[str, Callable[[Path, list[int], list[int] | None], Path]] = {
    "npz": write_npz,
    "webdataset": write_tars,
}


def _samples(
    folder: Path, numbers: list[int], labels: list[int] | None, rows: range
) -> Iterator[dict[str, str | bytes]]:
    for row in rows:
        path = image_path(folder, numbers[row])
        label = {} if labels is None else {"cls": str(labels[row]).encode()}
        yield {"__key__": path.stem, "png": path.read_bytes(), **label}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return from_pil(picture).permute(1, 2, 0).numpy()
