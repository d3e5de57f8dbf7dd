"""The embedded real data set: its split must never change."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from data.real import Split
from data.real.digits import digits

GOLDEN = {
    "training": "8acaabc6ec2dff668ee273dccbcdaf7bfc6e7cf786951d3ec6c4420d9087e585",
    "held_out": "3fe7ddab7ba2a35dc6475e6658f6b3f5be3e8c0d96138f9b6e1c75d8c21446ff",
}


@pytest.mark.parametrize(("split", "size"), [("training", 1400), ("held_out", 397)])
def test_a_part_is_the_golden_one_and_has_the_range_and_spread_of_teachers(split: Split, size: int):
    images, labels = digits(split)
    assert (images.shape, images.dtype) == ((size, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((size,), torch.int64)
    assert (images.min(), images.max()) == (-1, 1)
    assert float(images.std()) == pytest.approx(0.75, abs=0.005)  # of the shipped teacher
    assert labels.unique().tolist() == list(range(10))
    digest = hashlib.sha256(labels.numpy().tobytes() + images.numpy().tobytes()).hexdigest()
    assert digest == GOLDEN[split]


def test_the_parts_together_are_all_of_sklearns_images_once() -> None:
    parts = [digits("training"), digits("held_out")]
    ours = np.concatenate(
        [np.c_[(part.images.flatten(1).numpy() + 1) * 8, part.labels.numpy()] for part in parts]
    )
    theirs = np.c_[load_digits(return_X_y=True)]
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
