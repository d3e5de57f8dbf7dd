"""The embedded photographs: their patches and split must never change."""

import hashlib

import numpy as np
import pytest
import torch

from data import SHIPPED
from data.real import Split
from data.real.photos import CELL, SIZE, patches, photos, shrink
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get.images import to_uint8
from get.metrics.classifier import Classifier
from get.noise import draw

GOLDEN = {
    "training": "ea799d0fd2267e4ca56741c2b3192d28d93393d62d5917923182e31603c6eb3a",
    "held_out": "1e6ad9c9ea3e5f5d999e2b4b1ce03f58ef608dd7d21d32efe3a98e7a195010e7",
}
COUNTS = {"training": [959, 1144, 892], "held_out": [125, 160, 125]}


@pytest.mark.parametrize("split", COUNTS)
def test_a_part_is_the_golden_one_of_three_classes_of_much_the_same_size(split: Split) -> None:
    images, labels = photos(split)
    size, counts = sum(COUNTS[split]), torch.bincount(labels)
    assert (images.shape, images.dtype) == ((size, 3, 16, 16), torch.float32)
    assert (labels.shape, labels.dtype) == ((size,), torch.int64)
    assert (images.min(), images.max()) == (-1, 1)
    assert counts.tolist() == COUNTS[split]
    assert (counts / counts.sum()).sub(1 / 3).abs().max() < 0.06
    digest = hashlib.sha256(labels.numpy().tobytes() + to_uint8(images).numpy().tobytes())
    assert digest.hexdigest() == GOLDEN[split]


def test_no_pixel_is_in_both_parts() -> None:
    numbers = np.arange(150 * 225).reshape(150, 225)  # a picture whose pixels say where they are
    picture = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1).astype(np.uint8)

    def places(split: Split) -> set[tuple[int, ...]]:
        pixels = patches(picture, split).transpose(0, 2, 3, 1).reshape(-1, 3)
        return set(map(tuple, np.unique(pixels, axis=0).tolist()))

    training, held_out = places("training"), places("held_out")
    assert not training & held_out
    assert len(held_out) > 0.15 * numbers.size
    assert len(training | held_out) > 0.9 * numbers.size


def test_every_patch_held_out_lies_within_one_cell() -> None:
    cells = np.add.outer(np.arange(128) // CELL * 8, np.arange(128) // CELL)
    picture = np.repeat(cells[:, :, None], 3, 2).astype(np.uint8)
    flat = patches(picture, "held_out").reshape(-1, 3 * SIZE * SIZE)
    assert (flat == flat[:, :1]).all()


def test_shrinking_takes_rounded_means_of_squares() -> None:
    pixels = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7, 1).repeat(3, 2)
    # the mean of 0, 1, 7, 8 is 4; of 2, 3, 9, 10 it is 6
    assert shrink(pixels, 2)[:, :, 0].tolist() == [[4, 6, 8], [18, 20, 22]]
    halves = np.array([[0, 1], [0, 1]], np.uint8)[:, :, None].repeat(3, 2)
    assert shrink(halves, 2).tolist() == [[[1, 1, 1]]]
    white = np.full((3, 3, 3), 255, np.uint8)
    assert shrink(white, 3).tolist() == [[[255, 255, 255]]]


def test_the_shipped_teacher_draws_the_photographs_it_is_asked_for() -> None:
    teacher = open_teacher(SHIPPED / "photos-teacher", Sampler(steps=6), "cpu")
    classifier = Classifier.from_pretrained(SHIPPED / "photos-features", use_safetensors=True)
    noise, labels = draw(0, range(32), teacher.image_shape, teacher.num_classes)
    with torch.no_grad():
        named = classifier(teacher(noise, labels).clamp(-1, 1)).argmax(1)
    assert float((named == labels).float().mean()) >= 0.6  # chance: a third
