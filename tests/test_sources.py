"""Images and statistics by name: what is read, and what is refused in one line."""

import pickle  # noqa: TID251  to write some that are refused
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.real.cifar10 import _batch
from data.real.sources import ImageSource, open_source
from get.errors import InputError
from get.metrics.streaming import Gaussian


def picture(path: Path, size: int = 8, mode: str = "RGB") -> None:
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size, size, 3), "u1")
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of five coloured pictures, one of them in a sub-folder."""
    (tmp_path / "pictures" / "deeper").mkdir(parents=True)
    for i in range(4):
        picture(tmp_path / "pictures" / f"{i}.png")
    picture(tmp_path / "pictures" / "deeper" / "4.png")
    return tmp_path / "pictures"


def source(name: object) -> ImageSource:
    found = open_source(str(name), Path())
    assert isinstance(found, ImageSource)
    return found


def test_all_pictures_of_a_folder_are_read_in_one_order(folder):
    found = source(folder)
    assert (found.shape, found.count) == ((3, 8, 8), 5)
    images, labels = found.read(0, 5)
    assert labels is None
    assert images.abs().max() <= 1
    assert torch.equal(torch.cat([found.read(0, 2)[0], found.read(2, 5)[0]]), images)


def test_grey_pictures_stay_grey_unless_others_are_coloured(folder):
    for path in folder.rglob("*.png"):
        picture(path, mode="L")
    assert source(folder).shape == (1, 8, 8)
    picture(folder / "0.png")
    assert source(folder).shape == (3, 8, 8)
    assert source(folder).read(0, 5)[0].shape == (5, 3, 8, 8)


def test_a_fingerprint_is_of_the_content(folder, tmp_path):
    before = source(folder).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert source(moved).fingerprint == before
    picture(moved / "0.png", mode="L")
    assert source(moved).fingerprint != before


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_file_that_is_no_picture_is_named(folder, content):
    (folder / "2.png").write_bytes(content)
    with pytest.raises(InputError, match=r"expected a picture in .*2\.png, got .*; remove"):
        source(folder)


def test_a_picture_cut_short_is_named(folder):
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"expected a picture in .*2\.png, got .*; remove"):
        source(folder).read(0, 5)


def test_pictures_of_several_sizes_are_refused(folder):
    picture(folder / "big.png", 16)
    with pytest.raises(InputError, match=r"one size in .*, got 8x8 \(0.png\), 16x16 \(big.png\)"):
        source(folder)


def test_a_folder_without_pictures_and_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected pictures"):
        source(tmp_path)
    with pytest.raises(
        InputError, match=r"expected images .* got nothing; there is no such folder"
    ):
        source("nothing")
    with pytest.raises(InputError, match="expected cifar-10-batches-bin or cifar-10-batches-py"):
        open_source("cifar10-train", tmp_path)


def test_registered_sets_may_be_image_folders(folder, tmp_path):
    folder.rename(tmp_path / "cifar10-val")
    found = open_source("cifar10-val", tmp_path)
    assert isinstance(found, ImageSource)
    assert (found.name, found.count) == ("cifar10-val", 5)


# ---------------------------------------------------------------- statistics


def test_statistics_are_mean_and_covariance(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.arange(3.0), sigma=np.eye(3, dtype="f4"))
    found = open_source(str(tmp_path / "s.npz"), Path())
    assert isinstance(found, Gaussian)
    assert found.mean.tolist() == [0, 1, 2]
    assert (found.covariance.dtype, found.count) == (torch.float64, None)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(4)},
        {"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)},
        {"mu": np.array([print, None], dtype=object), "sigma": np.eye(2)},
    ],
)
def test_other_statistics_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match="name another file"):
        open_source(str(tmp_path / "s.npz"), Path())


# ---------------------------------------------------------------- CIFAR-10

EACH, PIXELS = 10_000, 3072
HEAD = (  # what cPickle of Python 2 wrote for the files of the python version
    b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x0ctesting b 1 q\x03U\x06labelsq\x04]q\x05("
)
ARRAY = (
    b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85"
    b"U\x01b\x87Rq\t(K\x01M\x10'M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03"
    b"U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
)


def write_both(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the same images as both versions have them."""
    pixels = np.random.default_rng(0).integers(0, 256, (EACH, PIXELS), "u1")
    labels = (np.arange(EACH) % 10).astype("u1")
    (root / "binary.bin").write_bytes(np.hstack([labels[:, None], pixels]).tobytes())
    classes = b"".join(b"K" + bytes([label]) for label in labels)
    data = pixels.tobytes()
    size = len(data).to_bytes(4, "little")
    (root / "python").write_bytes(HEAD + classes + ARRAY + size + data + b"tbu.")
    return pixels, labels


def test_both_versions_of_cifar10_hold_the_same_images(tmp_path):
    pixels, labels = write_both(tmp_path)
    for name in ("binary", "python"):
        images, classes = _batch(tmp_path / name)
        assert images.shape == (EACH, 3, 32, 32)
        assert np.array_equal(images.numpy().reshape(EACH, PIXELS), pixels)
        assert np.array_equal(classes.numpy(), labels)
    short = (tmp_path / "binary.bin").read_bytes()[:-1]
    (tmp_path / "binary.bin").write_bytes(short)
    with pytest.raises(InputError, match=r"expected 10000 images of CIFAR-10 in .*binary\.bin"):
        _batch(tmp_path / "binary")


@pytest.mark.parametrize("value", [{"data": 1, "labels": []}, Path("x"), b"x" * 100])
def test_pickles_of_something_else_are_refused_and_not_run(tmp_path, value):
    (tmp_path / "batch").write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(InputError, match="expected 10000 images of CIFAR-10"):
        _batch(tmp_path / "batch")
