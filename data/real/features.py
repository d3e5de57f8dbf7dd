"""The real images that generated ones are compared with, and their features, computed once."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from data.real import real_images
from get.errors import InputError
from get.metrics import features_of
from get.metrics.classifier import Classifier


class RealFeatures:
    """Real images and their features, by split.

    Attributes:
        network: The classifier whose features are compared.
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
        """Load a classifier from its folder and run it over the real images of this name.

        Raises:
            InputError: If either cannot be read or is made for images of another shape.
        """
        self.network = load_network(feature_network, image_shape, device)
        self.batch_size = batch_size
        self.images = {split: real_images(name, split).images for split in ("training", "held_out")}
        _check_shape(name, tuple(self.images["training"].shape[1:]), image_shape)
        self.features = {split: self.features_of(x) for split, x in self.images.items()}

    def features_of(self, images: Tensor) -> Tensor:
        """Return float64 features of images in [-1, 1]."""
        return self._run(self.network.features, images)

    def class_accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the fraction of images that the network takes for their class."""
        return float((self._run(self.network, images).argmax(1) == labels).double().mean())

    def _run(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return features_of(lambda x: function(x.to(self.network.device)), images, self.batch_size)


def load_network(
    folder: Path, image_shape: tuple[int, int, int], device: torch.device
) -> Classifier:
    """Load a feature network for images of this shape.

    Raises:
        InputError: If it cannot be read or is made for images of another shape.
    """
    try:
        network = Classifier.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a feature network in {folder}, got {type(error).__name__}; make one with "
            "pipeline/train_classifier.py"
        ) from error
    network.to(device)  # pyrefly: ignore[bad-argument-type]  diffusers wraps it
    c = network.config
    _check_shape(folder, (c["channels"], c["image_size"], c["image_size"]), image_shape)
    return network.eval()


def _check_shape(
    source: str | Path, shape: tuple[int, ...], image_shape: tuple[int, int, int]
) -> None:
    if shape != image_shape:
        raise InputError(
            f"expected images of {image_shape} like those of the pairs in {source}, got {shape}; "
            "name others with --feature_network and --real_images"
        )
