"""The published recipes have the published sizes and settings."""

import pytest
import torch

from data.pairs import Manifest
from get.cost import count_parameters
from pipeline import published
from pipeline.train import build_student

COUNTS = {  # of get_paper.md, in units of the last digit printed there
    "cifar10-get-t": 8.6,
    "cifar10-get-m": 19.2,
    "cifar10-get-s": 37.2,
    "cifar10-get-b": 62.2,
    "cifar10-get-bplus": 83.5,
    "cifar10-vit-s": 21.4,
    "cifar10-vit-b": 85.3,
    "cifar10-vit-l": 302.6,
    "cifar10-vit-xl": 446.7,
}


def manifest(num_classes: int | None) -> Manifest:
    return Manifest(
        teacher="",
        sampler={"steps": 18},
        evaluations=35,
        seed=0,
        teacher_batch_size=250,
        image_shape=(3, 32, 32),
        num_classes=num_classes,
        image_format="npy32",
        pairs_per_shard=5000,
    )


@pytest.mark.parametrize("name", COUNTS)
def test_every_published_model_builds_with_its_parameters(name):
    with torch.device("meta"):
        model = build_student(published.STUDENTS[name], manifest(None))
    assert round(count_parameters(model) / 1e6, 1) == COUNTS[name]


def test_the_conditional_recipe_differs_in_batch_and_pairs_only():
    plain, conditional = (published.STUDENTS[n] for n in ("cifar10-get-b", "cifar10-cond-get-b"))
    assert (plain.global_batch_size, conditional.global_batch_size) == (128, 256)
    assert plain.model == conditional.model
    with torch.device("meta"):
        model = build_student(conditional, manifest(10))
    assert model.num_classes == 10


def test_the_pairs_fit_the_order_of_training():
    for student in published.STUDENTS.values():
        pairs = next(p for p in published.PAIRS.values() if p.output_dir == student.pairs)
        shards = pairs.num_pairs // pairs.pairs_per_shard - student.holdout_shards
        assert shards * pairs.pairs_per_shard == 1_000_000
        assert shards % student.streams == 0
        assert student.global_batch_size % student.streams == 0
