"""The one type for noise, images and labels."""

import numpy as np
import pytest
import torch

from data.pairs import Pairs

LABELS = pytest.mark.parametrize("labels", [None, torch.arange(5)], ids=["", "labelled"])


def pairs_of(labels: torch.Tensor | None) -> Pairs:
    noise = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    return Pairs(noise, (noise * 50).to(torch.uint8), labels)


def rows(pairs: Pairs) -> list[list[float]]:
    """Return noise, images and labels as lists of one number per pair."""
    columns = [pairs.noise[:, 0, 0, 0], pairs.images[:, 0, 0, 0]]
    return [x.tolist() for x in (*columns, pairs.labels) if x is not None]


@LABELS
@pytest.mark.parametrize("at", [slice(1, 4, 2), np.array([1, 3]), torch.tensor([1, 3])])
def test_taking_keeps_noise_images_and_labels_together(labels, at):
    pairs = pairs_of(labels).take(at)
    assert len(pairs) == 2
    assert rows(pairs) == [[1, 3], [50, 150], [1, 3]][: 2 if labels is None else 3]


@LABELS
def test_parts_put_together_are_the_whole(labels: torch.Tensor | None) -> None:
    pairs = pairs_of(labels)
    parts = [pairs.take(slice(2)), pairs.take(slice(2, 2)), pairs.take(slice(2, 5))]
    assert rows(Pairs.cat(parts)) == rows(pairs)
    assert Pairs.cat([pairs]) is pairs


@LABELS
def test_stored_images_become_floats_and_floats_stay(labels: torch.Tensor | None) -> None:
    pairs = pairs_of(labels)
    floats = pairs.as_floats()
    assert floats.images.dtype == torch.float32
    torch.testing.assert_close(floats.images, pairs.images.float() / 127.5 - 1)
    assert torch.equal(floats.as_floats().images, floats.images)
    half = Pairs(floats.noise, floats.images.half(), labels).as_floats()
    torch.testing.assert_close(half.images, floats.images, rtol=0, atol=2**-11)
    moved = floats.to(torch.device("meta"))
    assert moved.noise.is_meta
    assert moved.images.is_meta
    assert (moved.labels is None) == (labels is None)
