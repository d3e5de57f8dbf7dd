"""The shapes of students, as settings.

An architecture is a frozen dataclass that can `build` a student: `GETModel` and `ViTModel` are
two, a recipe file may bring others. settings_train.py has the settings of their training.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from get.choices import MapForm, Start
from pipeline.recipes.settings_make import positive, within

if TYPE_CHECKING:  # models need torch, settings do not
    from get.models import Student


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of a student; image size, channels and classes come from the pairs.

    Attributes:
        patch_size: Side of a patch in pixels.
    """

    patch_size: int = 2

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything; a subclass may have others."""
        positive(patch_size=self.patch_size)

    def build(self, image_size: int, channels: int, num_classes: int | None) -> "Student":
        """Return a new student with initial weights; give its constructor keywords only.

        diffusers takes positional arguments for defaults and does not save them.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GETModel(Architecture):
    """Shape of a GET; see `get.models.GET`.

    Attributes:
        width: Channels of a token; 4 and the number of heads divide it.
        depth: Injection blocks, run once.
        equilibrium_depth: Weight-tied blocks, run in every iteration.
        heads: Attention heads.
        equilibrium_mlp_ratio: Hidden width of the equilibrium blocks' MLPs over `width`; 0 is
            attention without an MLP.
        coda_depth: Blocks after the last iteration, run once.
        iterations: How often the equilibrium blocks are run, in training and by default after it.
        z0: Where the iteration starts: at the injected features, at zeros, or at unit normal noise.
        map: "anchored" has a fixed point; "plain" is the paper's, which has none.
    """

    width: int = 64
    depth: int = 1
    equilibrium_depth: int = 3
    heads: int = 2
    equilibrium_mlp_ratio: float = 4.0
    coda_depth: int = 0
    iterations: int = 3
    z0: Start = "injection"
    map: MapForm = "anchored"

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        super().__post_init__()
        positive(
            width=self.width,
            equilibrium_depth=self.equilibrium_depth,
            heads=self.heads,
            iterations=self.iterations,
        )
        within(
            0,
            depth=self.depth,
            coda_depth=self.coda_depth,
            equilibrium_mlp_ratio=self.equilibrium_mlp_ratio,
        )

    def build(self, image_size: int, channels: int, num_classes: int | None) -> "Student":
        """Return a new GET."""
        from get.models import GET

        shape = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
        return GET(**shape, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class ViTModel(Architecture):
    """Shape of a ViT; see `get.models.ViT`.

    Attributes:
        width: Channels of a token; 4 and the number of heads divide it.
        depth: Number of blocks.
        heads: Attention heads.
    """

    width: int = 64
    depth: int = 4
    heads: int = 2

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        super().__post_init__()
        positive(width=self.width, depth=self.depth, heads=self.heads)

    def build(self, image_size: int, channels: int, num_classes: int | None) -> "Student":
        """Return a new ViT."""
        from get.models import ViT

        shape = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
        return ViT(**shape, **asdict(self))
