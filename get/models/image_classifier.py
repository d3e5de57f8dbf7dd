"""Classifiers of images: GET's trunk with a head, and its explicit twin, a ViT with the same head.

They are what certified smoothing and the study of neural collapse need: networks whose features
are an equilibrium, next to ones whose features are not. `get/robustness.py` certifies them,
`pipeline/train_equilibrium_classifier.py` trains them. FID's feature networks are others, in
`get/metrics/classifier.py`.
"""

import sys
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from get.equilibrium import Anderson, Gradient, Phantom, Solution, fixed_point
from get.errors import InputError
from get.models.checks import check_shape, check_sizes
from get.models.get import Problem
from get.models.layers import EPS, Block, Embed, initialise


class ImageClassifier(ModelMixin, ConfigMixin):
    """Images to tokens, tokens to a mean feature vector, features to logits.

    A subclass defines `tokens(images)` and calls `_build_ends` in its constructor.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclass loadable: diffusers looks for its loader in the subclass's module."""
        super().__init_subclass__(**kwargs)
        vars(sys.modules[cls.__module__]).setdefault("ModelMixin", ModelMixin)

    def _build_ends(
        self, image_size: int, channels: int, patch_size: int, width: int, num_classes: int
    ) -> None:
        """Build what comes before and after the blocks: patches; norm and classes."""
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        self.embed = Embed(image_size, channels, patch_size, width, None)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.classes = nn.Linear(width, num_classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, self.image_size, self.image_size

    def tokens(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what the blocks make of images."""
        raise NotImplementedError

    def features_of(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch width"]:
        """Return the feature vector that the head sees: the mean over normalised tokens."""
        return self.norm(tokens).mean(1)

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch width"]:
        """Return the feature vectors of images in [-1, 1], or of noisy ones."""
        return self.features_of(self.tokens(images))

    def logits_of(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of tokens."""
        return self.classes(self.features_of(tokens))

    def both(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch classes"]]:
        """Return features and logits; the logits are `classes(features)`."""
        vectors = self.features(images)
        return vectors, self.classes(vectors)

    def forward(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of images in [-1, 1], or of noisy ones."""
        return self.both(images)[1]

    def _embedded(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"expected images of shape (batch, {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(images.shape)}; give the image shape the classifier was made for"
            )
        return self.embed(images, None)[0]


class EquilibriumClassifier(ImageClassifier):
    """GET's injection and looped blocks, solved to their fixed point, and a head.

    Args:
        image_size: Side of the square image in pixels.
        channels: Image channels.
        patch_size: Side of a patch in pixels; divides `image_size`.
        width: Channels of a token, and of a feature vector.
        depth: Injection blocks, run once.
        equilibrium_depth: Weight-tied blocks, run in every evaluation of the map.
        heads: Attention heads.
        mlp_ratio: Hidden width of all MLPs over `width`.
        num_classes: Number of classes.
        max_steps: Evaluations of the map that a call may spend.
        tol: Relative residual at which an image's solve ends.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 1,
        equilibrium_depth: int = 1,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 10,
        max_steps: int = 30,
        tol: float = 1e-3,
    ) -> None:
        """Build the network with new weights; see the class for the arguments."""
        super().__init__()
        check_shape(image_size, channels, patch_size, width, heads, num_classes, mlp_ratio)
        check_sizes(("depth", depth, 0), ("equilibrium_depth", equilibrium_depth, 1))
        self.max_steps, self.tol = max_steps, tol
        self._build_ends(image_size, channels, patch_size, width, num_classes)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.injection = nn.Linear(width, 3 * width * equilibrium_depth, bias=False)
        self.equilibrium_blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio) for _ in range(equilibrium_depth)
        )
        initialise(self)

    def problem(
        self,
        images: Float[Tensor, "batch channels side side"],
        z0: Float[Tensor, "batch tokens width"] | None = None,
    ) -> Problem:
        """Return what is to be solved for these images: z = equilibrium_map(z, *inputs).

        Args:
            images: Images in [-1, 1], or noisy ones.
            z0: Where the solve starts; None starts at the injected features.
        """
        x = self._embedded(images)
        for block in self.blocks:
            x = block(x)
        u = self.injection(x).chunk(len(self.equilibrium_blocks), dim=-1)
        return Problem(x if z0 is None else z0, (x, *u))

    def equilibrium_map(self, z: Tensor, x: Tensor, *u: Tensor) -> Tensor:
        """Return f(z) = x + (blocks(z) - z), GET's anchored map."""
        out = z
        for block, u_i in zip(self.equilibrium_blocks, u, strict=True):
            out = block(out, u_i)
        return x + (out - z)

    def solve(
        self,
        images: Float[Tensor, "batch channels side side"],
        z0: Float[Tensor, "batch tokens width"] | None = None,
        gradient: Gradient = Phantom(steps=3, damping=1.0),  # noqa: B008  frozen
    ) -> Solution:
        """Solve for the tokens of images, each image on its own; see `fixed_point`."""
        problem = self.problem(images, z0)
        return fixed_point(
            self.equilibrium_map,
            problem.z0,
            inputs=problem.inputs,
            solver=Anderson(),
            gradient=gradient,
            max_steps=self.max_steps,
            tol=self.tol,
            compact=True,
        )

    def tokens(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the equilibrium; where gradients are enabled, after three more plain steps."""
        return self.solve(images).z


class ExplicitClassifier(ImageClassifier):
    """The explicit twin: a ViT of `depth` blocks with the same patches and head.

    Args:
        image_size: Side of the square image in pixels.
        channels: Image channels.
        patch_size: Side of a patch in pixels; divides `image_size`.
        width: Channels of a token, and of a feature vector.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over `width`.
        num_classes: Number of classes.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 10,
    ) -> None:
        """Build the network with new weights; see the class for the arguments."""
        super().__init__()
        check_shape(image_size, channels, patch_size, width, heads, num_classes, mlp_ratio)
        check_sizes(("depth", depth, 0))
        self._build_ends(image_size, channels, patch_size, width, num_classes)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        initialise(self)

    def tokens(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the tokens after the last block."""
        x = self._embedded(images)
        for block in self.blocks:
            x = block(x)
        return x
