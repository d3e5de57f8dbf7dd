"""Scores of generated images against real ones, in the features of several networks.

A model may have been trained on the features of the first network, where a low distance then means
little. The others judge it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.real.features import RealFeatures
from get.errors import InputError
from get.metrics import frechet_distance, nearest_distance, precision_recall, score
from get.metrics.features import name_of


class RealScores:
    """What generated images are compared with: real images, and their features in every network."""

    def __init__(
        self,
        feature_networks: Sequence[Path],
        name: str,
        image_shape: tuple[int, int, int],
        device: torch.device,
        batch_size: int = 256,
    ) -> None:
        """Load the networks and run them over the real images of this name.

        Raises:
            InputError: If there is no network or two share a name, or see `RealFeatures`.
        """
        names = [name_of(path) for path in feature_networks]
        if not names or len({*names}) < len(names):
            raise InputError(
                f"expected feature networks of different names, got {', '.join(names) or 'none'}; "
                "rename one"
            )
        self.networks = {
            title: RealFeatures(path, name, image_shape, device, batch_size)
            for title, path in zip(names, feature_networks, strict=True)
        }
        # What real images score that no network and no model has seen.
        self.real_fid = {
            name: frechet_distance(real.features["held_out"], real.features["training"])
            for name, real in self.networks.items()
        }
        images = self.networks[names[0]].images
        self.real_nearest = float(nearest_distance(images["held_out"], images["training"]).mean())

    def __call__(
        self,
        images: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
    ) -> dict[str, Any]:
        """Return every score of images in [-1, 1].

        "training" and "held_out" compare with these real images in the first network, "networks"
        does so in every network. "fdr" is the mean over networks of the Frechet distance from the
        training images, divided by that of the held-out real images (FDr^k, arXiv:2604.28190).
        """
        (first, real), *judges = self.networks.items()
        made = real.features_of(images)
        by_split = {split: score(made, features) for split, features in real.features.items()}
        scores: dict[str, Any] = {split: asdict(found) for split, found in by_split.items()}
        compared = by_split["training"]
        networks = {first: (compared.fid, compared.precision, compared.recall)}
        for name, judge in judges:
            made, training = judge.features_of(images), judge.features["training"]
            distance = frechet_distance(made, training)
            networks[name] = distance, *precision_recall(made, training)
        scores["networks"] = {
            name: {
                "fid": distance,
                "fid_of_real": self.real_fid[name],
                "precision": precision,
                "recall": recall,
            }
            for name, (distance, precision, recall) in networks.items()
        }
        ratios = [distance / self.real_fid[name] for name, (distance, *_) in networks.items()]
        scores["fdr"] = sum(ratios) / len(ratios)
        able = [network for _, network in (*judges, (first, real)) if network.network.knows_classes]
        if labels is not None and able:
            judge = able[0]  # if there is one, of a network that no training uses
            scores["class_accuracy"] = judge.class_accuracy(images, labels)
        nearest = nearest_distance(images, real.images["training"])
        scores["nearest_training_image"] = float(nearest.mean())
        scores["nearest_training_image_of_held_out"] = self.real_nearest
        return scores
