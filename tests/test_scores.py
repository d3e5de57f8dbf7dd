"""Scores in several feature networks: FDr is the mean ratio, the first network scores as alone."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data import SHIPPED
from data.real import real_images
from data.real.features import RealFeatures
from data.real.scores import RealScores
from get.errors import InputError
from get.metrics import frechet_distance, score

NETWORKS = [SHIPPED / f"digits-features{suffix}" for suffix in ("", "-b", "-c")]


def scores_of(networks: list[Path]) -> RealScores:
    return RealScores(networks, "digits", (1, 8, 8), torch.device("cpu"))


def test_real_held_out_images_have_fdr_one_and_their_distance_in_every_network():
    images, labels = real_images("digits", "held_out")
    scores = scores_of(NETWORKS)(images, labels)
    assert scores["fdr"] == pytest.approx(1)
    networks = scores["networks"]
    assert list(networks) == ["digits-features", "digits-features-b", "digits-features-c"]
    assert all(n["fid"] == pytest.approx(n["fid_of_real"]) for n in networks.values())
    assert scores["nearest_training_image"] == scores["nearest_training_image_of_held_out"]


def test_fdr_is_the_mean_ratio_and_class_accuracy_is_a_judges():
    images, labels = real_images("digits", "held_out")
    images = (images + 0.3 * torch.randn(images.shape)).clamp(-1, 1)
    scores = scores_of(NETWORKS)(images, labels)
    ratios = []
    for folder in NETWORKS:
        real = RealFeatures(folder, "digits", (1, 8, 8), torch.device("cpu"))
        made, training = real.features_of(images), real.features["training"]
        distance = frechet_distance(made, training)
        ratios.append(distance / frechet_distance(real.features["held_out"], training))
        found = scores["networks"][folder.name]
        full = asdict(score(made, training))
        assert {k: full[k] for k in ("fid", "precision", "recall")}.items() <= found.items()
        if folder == NETWORKS[0]:
            assert scores["training"] == full
        if folder == NETWORKS[1]:
            assert scores["class_accuracy"] == real.class_accuracy(images, labels)
    assert scores["fdr"] == pytest.approx(sum(ratios) / 3)


def test_one_network_is_enough_and_its_figures_are_the_first_networks():
    images, labels = real_images("digits", "held_out")
    alone, three = (scores_of(n)(images, labels) for n in (NETWORKS[:1], NETWORKS))
    assert alone["training"] == three["training"]
    assert list(alone["networks"]) == ["digits-features"]


@pytest.mark.parametrize("networks", [[], [NETWORKS[0], NETWORKS[0]]])
def test_networks_without_names_of_their_own_are_refused(networks):
    with pytest.raises(InputError, match="expected feature networks of different names"):
        scores_of(networks)
