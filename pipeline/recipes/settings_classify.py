"""The settings of image classifiers: an equilibrium one and its explicit twin."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from get.errors import InputError
from pipeline.recipes.recipe import RUNS, Recipe
from pipeline.recipes.settings_make import (
    LRScheduler,
    TrainingConfig,
    positive,
    unsigned,
    within,
)

if TYPE_CHECKING:  # models need torch, settings do not
    from get.models.image_classifier import ImageClassifier


@dataclass(frozen=True, kw_only=True)
class ClassifierShape:
    """Shape of an image classifier; image size, channels and classes come from the images.

    Attributes:
        patch_size: Side of a patch in pixels.
        width: Channels of a token, and of a feature vector.
        depth: Blocks that run once: all of them, or those before the equilibrium.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over `width`.
    """

    patch_size: int = 2
    width: int = 48
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        positive(**asdict(self))

    def build(self, image_size: int, channels: int, num_classes: int) -> "ImageClassifier":
        """Return a new explicit classifier, a ViT."""
        from get.models.image_classifier import ExplicitClassifier

        shape = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
        return ExplicitClassifier(**shape, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class EquilibriumShape(ClassifierShape):
    """Shape of an equilibrium classifier.

    Attributes:
        equilibrium_depth: Weight-tied blocks that are solved for their fixed point.
        max_steps: Evaluations of them that a call may spend.
        tol: Relative residual at which an image's solve ends.
    """

    depth: int = 1
    equilibrium_depth: int = 1
    max_steps: int = 30
    tol: float = 1e-3

    def build(self, image_size: int, channels: int, num_classes: int) -> "ImageClassifier":
        """Return a new equilibrium classifier."""
        from get.models.image_classifier import EquilibriumClassifier

        shape = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
        return EquilibriumClassifier(**shape, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class ImageClassifierConfig(TrainingConfig):
    """Train an image classifier, an equilibrium or an explicit one.

    Attributes:
        train_data_dir: "digits", "photos", or a folder of pictures of one size, a sub-folder a
            class.
        model: Its shape, which also says its kind.
        noise: Standard deviation of the Gaussian noise on every training image, whose pixels are
            in [-1, 1]; certified smoothing at this deviation wants it. 0 adds none.
        optimizer: "muon" for the matrices of the blocks and AdamW for the rest, or "adamw".
        muon_learning_rate: Peak learning rate of Muon.
        gradient: How an equilibrium is trained. "window": a loss on each of three plain steps,
            before which half of the batch has made `window_rollout` steps without gradient.
            "phantom": a loss on the solved state, through three steps at it.
        window_rollout: Fewest and most steps without gradient; a number is drawn in every step.
    """

    train_data_dir: str = "digits"
    model: ClassifierShape = field(default_factory=EquilibriumShape)
    noise: float = 0.5
    max_train_steps: int = 1200
    global_batch_size: int = 64
    lr_scheduler: LRScheduler = "linear"
    lr_warmup_steps: int = 50
    optimizer: Literal["adamw", "muon"] = "muon"
    muon_learning_rate: float = 0.005
    gradient: Literal["window", "phantom"] = "window"
    window_rollout: tuple[int, int] = (1, 6)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        super().__post_init__()
        positive(muon_learning_rate=self.muon_learning_rate)
        within(0, noise=self.noise)
        fewest, most = self.window_rollout
        if not 0 <= fewest <= most:
            raise InputError(
                f"expected window_rollout as fewest and most steps, got {self.window_rollout}"
            )


def image_classifiers(recipes: Mapping[str, Recipe]) -> dict[str, ImageClassifierConfig]:
    """Return the settings of train_equilibrium_classifier.py by recipe: NAME, NAME-explicit."""
    found: dict[str, ImageClassifierConfig] = {}
    for name, recipe in recipes.items():
        if recipe.classifier is None:
            continue
        data = recipe.classifier.train_data_dir
        patch = next((s.model.patch_size for s in recipe.students.values()), 2)
        shapes = {
            "": EquilibriumShape(patch_size=patch),
            "explicit": ClassifierShape(patch_size=patch),
        }
        for kind, shape in shapes.items():
            folder = RUNS / f"{name}-classifier-{kind or 'equilibrium'}"
            config = ImageClassifierConfig(output_dir=folder, train_data_dir=data, model=shape)
            found[f"{name}-{kind}".rstrip("-")] = config
    return found


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Certify an equilibrium classifier by randomised smoothing, solved in many ways.

    Attributes:
        model: A run of train_equilibrium_classifier.py, or any folder with such a classifier.
        twin: Its explicit twin, for comparison; None leaves it out.
        real_images: "digits", "photos", or a folder of pictures; the held-out part is certified.
        output_dir: Where certified.json, certified.md and certified.png go; `labels/` there keeps
            what is done, so that the same command continues.
        num_images: Images, the first ones; None takes all.
        sigma: Standard deviation of the noise, as in training.
        num_trials: Noisy copies of an image whose votes count.
        num_selection: Others, which choose its class.
        audit_shares: Shares of `num_trials` that are audited where labels need it.
        alpha: Probability that a certificate is wrong, at most.
        chains: Chains of serialised smoothing.
        seed: Of the noise.
        full: Measure all ways of solving, not the main ones alone.
        ways: Measure these alone, with "fixed 30" and "adaptive 1e-3", which the others are
            compared with; see `pipeline/benchmarks/labelling.py`. None given, the main ones.
        num_attacked: Images whose certificates are attacked.
    """

    model: Path
    output_dir: Path
    twin: Path | None = None
    real_images: str = "digits"
    num_images: int | None = None
    sigma: float = 0.5
    num_trials: int = 500
    num_selection: int = 100
    audit_shares: tuple[float, ...] = (0.04, 0.2, 1.0)
    alpha: float = 1e-3
    chains: int = 25
    seed: int = 0
    full: bool = False
    ways: tuple[str, ...] = ()
    num_attacked: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        positive(
            num_images=self.num_images,
            sigma=self.sigma,
            num_trials=self.num_trials,
            num_selection=self.num_selection,
            chains=self.chains,
        )
        within(0, num_attacked=self.num_attacked)
        unsigned(self.seed)
        if not 0 < self.alpha < 1:
            raise InputError(f"expected alpha in (0, 1), got {self.alpha}")
        if not all(0 < share <= 1 for share in self.audit_shares):
            raise InputError(f"expected audit_shares in (0, 1], got {self.audit_shares}")


def certifications(recipes: Mapping[str, Recipe]) -> dict[str, CertifyConfig]:
    """Return the settings of certify.py by recipe."""
    table = image_classifiers(recipes)
    return {
        name: CertifyConfig(
            model=config.output_dir,
            twin=table[f"{name}-explicit"].output_dir,
            real_images=config.train_data_dir,
            output_dir=config.output_dir / "certified",
            sigma=config.noise,
        )
        for name, config in table.items()
        if isinstance(config.model, EquilibriumShape)
    }
