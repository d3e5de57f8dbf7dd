"""ViT, the baseline GET is compared with: the same parts, called the same way, no iteration."""

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from get.models.checks import check_call, check_shape, check_sizes
from get.models.layers import Block, Decode, Embed, initialise
from get.models.student import Student


class ViT(Student):
    """Vision transformer from noise to image.

    Args:
        image_size: Side of the square image in pixels.
        channels: Image channels.
        patch_size: Side of a patch in pixels; divides `image_size`.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over `width`.
        num_classes: Number of classes; None for an unconditional model.
    """

    _no_split_modules = ["Block"]  # noqa: RUF012  the names diffusers looks for
    _repeated_blocks = ["Block"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        patch_size: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
    ) -> None:
        """Build the model with published initial values; see the class for the arguments."""
        super().__init__()
        check_shape(image_size, channels, patch_size, width, heads, num_classes, mlp_ratio)
        check_sizes(("depth", depth, 0))
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        self.embed = Embed(image_size, channels, patch_size, width, num_classes)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.decode = Decode(width, patch_size, channels)
        initialise(self)

    def forward(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels side side"]:
        """Make images from noise.

        Args:
            noise: Unit normal noise.
            labels: Class indices; None exactly if the model is unconditional.

        Returns:
            Images, nominally in [-1, 1], not clipped.

        Raises:
            InputError: If shapes or labels do not fit the model.
        """
        shape = self.channels, self.image_size, self.num_classes
        check_call(noise, labels, *shape, self.embed.patch.weight)
        x, label = self.embed(noise, labels)
        for block in self.blocks:
            x = block(x, label)
        return self.decode(x)
