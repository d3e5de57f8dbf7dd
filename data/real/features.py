"""The real images that generated ones are compared with, and their features, computed once."""

from pathlib import Path

import torch
from torch import Tensor

from data.real import real_images
from get.errors import InputError
from get.metrics import features_of
from get.metrics.classifier import Classifier
from get.metrics.features import load_classifier, open_features
from get.metrics.networks import PUBLISHED


class RealFeatures:
    """Real images and their features, by split.

    Attributes:
        network: The network whose features are compared.
        images: "training" and "held_out" images in [-1, 1].
        features: Their float64 features.
    """

    def __init__(
        self,
        feature_network: Path,
        name: str,
        image_shape: tuple[int, int, int],
        device: torch.device,
        batch_size: int = 256,
    ) -> None:
        """Load a network by folder or name and run it over the real images of this name.

        Raises:
            InputError: If either cannot be read or is made for images of another shape.
        """
        self.network = open_features(feature_network, device)
        if self.network.image_shape is not None:
            _check_shape(feature_network, self.network.image_shape, image_shape)
        self.batch_size = batch_size
        self.images = {split: real_images(name, split).images for split in ("training", "held_out")}
        _check_shape(name, tuple(self.images["training"].shape[1:]), image_shape)
        self.features = {split: self.features_of(x) for split, x in self.images.items()}

    def features_of(self, images: Tensor) -> Tensor:
        """Return float64 features of images in [-1, 1]."""
        return features_of(lambda x: self.network(x)[0], images, self.batch_size)

    def class_accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the fraction of images that the network, a classifier, takes for their class."""

        def classes(x: Tensor) -> Tensor:
            logits = self.network(x)[1]
            assert logits is not None
            return logits

        found = features_of(classes, images, self.batch_size).argmax(1)
        return float((found == labels).double().mean())


def load_network(
    folder: Path, image_shape: tuple[int, int, int], device: torch.device
) -> Classifier:
    """Load a feature network of ours for images of this shape, to differentiate through.

    Raises:
        InputError: If it cannot be read or is made for images of another shape.
    """
    if (name := str(folder).partition("@")[0]) in PUBLISHED:
        raise InputError(
            f"expected the folder of a feature network to train on, got {name}; that one is for "
            "measuring: set frechet_weight to 0, or make another with pipeline/train_classifier.py"
        )
    network = load_classifier(folder)
    network.to(device)  # pyrefly: ignore[bad-argument-type]  diffusers wraps it
    c = network.config
    _check_shape(folder, (c["channels"], c["image_size"], c["image_size"]), image_shape)
    return network


def _check_shape(
    source: str | Path, shape: tuple[int, ...], image_shape: tuple[int, int, int]
) -> None:
    if shape != image_shape:
        raise InputError(
            f"expected images of {image_shape} like those of the pairs in {source}, got {shape}; "
            "name others with --feature_network and --real_images"
        )
