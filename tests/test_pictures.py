"""Real images from a folder of pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.real import Split, real_images
from data.real.digits import digits
from data.real.photos import photos
from get.errors import InputError


def paint(folder: Path, greys: range, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
    """Save one flat picture a grey value, named so that they sort by it."""
    folder.mkdir(parents=True, exist_ok=True)
    for grey in greys:
        Image.new("L", size, grey).convert(mode).save(folder / f"{grey:03d}.png")
    return folder


def greys_of(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize(("name", "embedded"), [("digits", digits), ("photos", photos)])
def test_embedded_data_sets_have_names(name: str, embedded: Callable) -> None:
    assert torch.equal(real_images(name, "held_out").images, embedded("held_out").images)


def test_sub_folders_sorted_by_name_are_the_classes(tmp_path: Path) -> None:
    for name, greys in (("zebra", range(20, 30)), ("ant", range(10)), ("bee", range(10, 20))):
        paint(tmp_path / name, greys)
    images, labels = real_images(str(tmp_path), "training")
    assert greys_of(images) == [i for i in range(30) if i % 10 != 9]
    assert labels.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert labels.dtype == torch.int64


def test_a_folder_without_sub_folders_has_one_class_and_every_tenth_picture_is_held_out(tmp_path):
    paint(tmp_path, range(35))
    (tmp_path / "notes.txt").write_text("not a picture")
    assert greys_of(real_images(str(tmp_path), "held_out").images) == [9, 19, 29]
    images, labels = real_images(str(tmp_path), "training")
    assert greys_of(images) == [i for i in range(35) if i not in (9, 19, 29)]
    assert labels.tolist() == [0] * 32


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_pictures_become_float32_of_one_or_three_channels(tmp_path, mode, channels):
    paint(tmp_path, range(0, 256, 17), mode=mode)
    images = real_images(str(tmp_path), "training").images
    assert images.shape == (15, channels, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)


def test_colours_stay_in_the_order_red_green_blue(tmp_path: Path) -> None:
    for i in range(10):
        Image.new("RGB", (8, 8), (255, 51, 0)).save(tmp_path / f"{i}.png")
    first = real_images(str(tmp_path), "training").images[0, :, 0, 0]
    torch.testing.assert_close(first, torch.tensor([1.0, -0.6, -1.0]))


def refuse(folder: Path, split: Split, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        real_images(str(folder), split)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("split", ["training", "held_out"])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_fewer_than_ten_pictures_are_refused_for_either_part(tmp_path, split, count):
    paint(tmp_path, range(count))
    refuse(tmp_path, split, f"got {count}; at least 10")


@pytest.mark.parametrize(("size", "mode"), [((16, 16), "L"), ((8, 8), "RGB")])
def test_mixed_pictures_are_refused(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    paint(tmp_path, range(10))
    paint(tmp_path, range(10, 20), size, mode)
    refuse(tmp_path, "training", "one size and mode")


def test_other_shapes_files_that_are_no_pictures_and_no_folder_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "training", "no such folder")
    refuse(paint(tmp_path, range(10), (8, 4)), "training", "square")
    (tmp_path / "003.png").write_bytes(b"not a png")
    refuse(tmp_path, "training", "003.png")
