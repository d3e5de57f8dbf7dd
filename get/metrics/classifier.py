"""A small convolutional classifier whose penultimate features stand in for Inception's.

FID and its kin need features that know the data; ImageNet features know nothing of 8x8 digits.
Trained by `pipeline/train_classifier.py`, used by `data/real/features.py`.
"""

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn


class Classifier(ModelMixin, ConfigMixin):
    """Three 3x3 convolutions, one max-pooling, one hidden layer of features, one of classes.

    Args:
        image_size: Side of the square image in pixels; even.
        channels: Image channels.
        width: Channels of the first convolution; the others have twice as many.
        features: Size of the feature vector.
        num_classes: Number of classes.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        width: int = 32,
        features: int = 64,
        num_classes: int = 10,
    ) -> None:
        """Build the network with new weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (image_size // 2) ** 2, features)
        self.classes = nn.Linear(features, num_classes)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return the feature vectors of images in [-1, 1]."""
        x = F.relu(self.conv2(F.relu(self.conv1(images))))
        x = F.relu(self.conv3(F.max_pool2d(x, 2)))
        return F.relu(self.hidden(x.flatten(1)))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of images in [-1, 1]."""
        return self.classes(self.features(images))
