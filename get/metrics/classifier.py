"""Small classifiers whose penultimate features stand in for Inception's.

FID and its kin need features that know the data; ImageNet features know nothing of 8x8 digits. A
model may be trained on the features of one network, so others, of another architecture and seed,
judge it. Trained by `pipeline/train_classifier.py`, used by `data/real/features.py`.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from get.choices import Body


class Classifier(ModelMixin, ConfigMixin):
    """A body, one hidden layer of features, one layer of classes.

    Args:
        image_size: Side of the square image in pixels; a multiple of 4, for "residual" of 8.
        channels: Image channels.
        width: Channels of the body's first layer; of a token for "transformer".
        features: Size of the feature vector.
        num_classes: Number of classes.
        body: "plain": three 3x3 convolutions and one max-pooling. "residual": `Residual`.
            "transformer": `Transformer`.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        width: int = 32,
        features: int = 64,
        num_classes: int = 10,
        body: Body = "plain",
    ) -> None:
        """Build the network with new weights."""
        super().__init__()
        if body == "plain":
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
            self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
            self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
            size = 2 * width * (image_size // 2) ** 2
        elif body == "residual":
            self.trunk, size = Residual(channels, width), 2 * width * (image_size // 8) ** 2
        else:
            self.trunk, size = Transformer(image_size, channels, width), width
        self.hidden = nn.Linear(size, features)
        self.classes = nn.Linear(features, num_classes)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return the feature vectors of images in [-1, 1]."""
        if self.config["body"] == "plain":
            x = F.relu(self.conv2(F.relu(self.conv1(images))))
            x = F.relu(self.conv3(F.max_pool2d(x, 2))).flatten(1)
        else:
            x = self.trunk(images)
        return F.relu(self.hidden(x))

    def both(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch classes"]]:
        """Return the feature vectors and the logits of images in [-1, 1]."""
        vectors = self.features(images)
        return vectors, self.classes(vectors)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of images in [-1, 1]."""
        return self.both(images)[1]


class Residual(nn.Module):
    """Residual blocks at full size, then twice the channels at half the size.

    A block adds conv(relu(norm(conv(relu(norm(x)))))) to x (arXiv:1603.05027), with group norms.
    The result has means over squares of 8 x 8 pixels of the image. (Means over a whole 16x16 photo
    say little but its class: their FD would count classes.)
    """

    def __init__(self, channels: int, width: int) -> None:
        """Build it with new weights; `width` is a multiple of 8."""
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.block1 = _block(width)
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.block2 = _block(2 * width)
        self.norm = nn.GroupNorm(8, 2 * width)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch vector"]:
        """Return a vector per image."""
        x = self.stem(images)
        x = self.shrink(x + self.block1(x))
        return F.avg_pool2d(F.relu(self.norm(x + self.block2(x))), 4).flatten(1)


def _block(width: int) -> nn.Sequential:
    halves = [
        (nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)
    ]
    return nn.Sequential(*(layer for half in halves for layer in half))


class Transformer(nn.Module):
    """Two transformer blocks over 4 x 4 patches; the mean over tokens."""

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        """Build it with new weights; `width` is a multiple of 4."""
        super().__init__()
        patch = image_size // 4
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.1 * torch.randn(16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(2)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch vector"]:
        """Return a vector per image."""
        x = self.embed(images).flatten(2).mT + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)
