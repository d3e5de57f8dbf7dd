"""The settings of the analyses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data import SHIPPED
from get.analysis import ERF, RELU, TANH
from get.errors import InputError
from pipeline.benchmarks.results import BenchmarkConfig
from pipeline.recipes.recipe import RUNS
from pipeline.recipes.settings_make import positive, unsigned, within

KNOWN = {a.name: a for a in (RELU, ERF, TANH)}


@dataclass(frozen=True, kw_only=True)
class NngpConfig(BenchmarkConfig):
    """Compare equilibrium networks of finite width with their Gaussian process.

    Attributes:
        output_dir: Where nngp.json and nngp.png go.
        activations: relu, erf, tanh.
        weight_std: s_w of the finite networks; below 1 / (2 L) the layer contracts.
        points: Inputs, random on the sphere of radius sqrt(input_size).
        input_size: Components of an input.
        widths: Components of the state.
        depths: Layers; the equilibrium comes in addition.
        states: Draws times width. A network of twice the width is drawn half as often, for about
            the same Monte-Carlo error.
        normality_draws: Outputs of every width that are compared with the normal distribution.
        sets: Random sets of points whose smallest eigenvalue is found.
        real_images: "digits", "photos" or a folder with a sub-folder a class.
        classifier_steps: Training steps of the classifiers that the kernels are compared with.
        seed: Names all random numbers.
        full: 8 times the states and one more width.
    """

    output_dir: Path = RUNS / "nngp"
    activations: tuple[str, ...] = tuple(KNOWN)
    weight_std: float = 0.4
    points: int = 4
    input_size: int = 10
    widths: tuple[int, ...] = (16, 64, 256, 1024)
    depths: tuple[int, ...] = (1, 2, 3, 5, 8)
    states: int = 2**20
    normality_draws: int = 4096
    sets: int = 200
    real_images: str = "digits"
    classifier_steps: int = 1000
    seed: int = 0
    full: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing and unknown activations."""
        numbers = {f"{k} {n}": n for k in ("widths", "depths") for n in getattr(self, k)}
        names = ("points", "input_size", "states", "normality_draws", "sets", "weight_std")
        positive(**numbers, **{k: getattr(self, k) for k in (*names, "classifier_steps")})
        unsigned(self.seed)
        unknown = [name for name in self.activations if name not in KNOWN]
        if unknown or not self.activations:
            raise InputError(
                f"expected activations among {', '.join(KNOWN)}, got {', '.join(unknown)}; "
                "others can be used from Python, as docs/gaussian_process.md shows"
            )


Kind = Literal["equilibrium", "equilibrium-phantom", "explicit"]


@dataclass(frozen=True, kw_only=True)
class CollapseConfig(BenchmarkConfig):
    """Watch neural collapse in equilibrium and explicit classifiers, balanced and not.

    Attributes:
        output_dir: Where collapse.json, collapse.png and a file of each training go.
        real_images: "digits", "photos" or a folder with a sub-folder a class.
        student: A class-conditional run of train.py that makes the images of `student_ratios`;
            None leaves these out.
        classifier: Only those images of the student are taken that it names by their class.
        kinds: What is trained. "equilibrium-phantom" has a loss on the solved state alone.
        majorities: Numbers of majority classes, among all; which ones they are changes by seed.
        ratios: Images of a majority class over those of a minority class; 1 is balanced.
        images: Real training images of a majority class.
        student_ratios: The same with images of the student, of which there are as many as needed.
        student_images: Images of a majority class there.
        weight_decays: Of the last layer's weight, decoupled: a step multiplies it by 1 - learning
            rate * decay. Theory bounds its size, which 0 does not.
        seeds: Of initial weights, order and choice of classes.
        max_train_steps: Steps of a training, at the end of which no training image is misnamed.
        points: How often the features are looked at.
        jobs: Trainings at the same time, a core each.
        full: Five seeds, seven majority classes as well, and unequal classes with weight decay.
    """

    output_dir: Path = RUNS / "collapse"
    real_images: str = "digits"
    student: Path | None = None
    classifier: Path = SHIPPED / "digits-features"
    kinds: tuple[Kind, ...] = ("equilibrium", "explicit")
    majorities: tuple[int, ...] = (3,)
    ratios: tuple[int, ...] = (1, 10)
    images: int = 120
    student_ratios: tuple[int, ...] = (100,)
    student_images: int = 600
    weight_decays: tuple[float, ...] = (0.0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    max_train_steps: int = 1000
    points: int = 8
    jobs: int = 2
    full: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        names = ("majorities", "ratios", "student_ratios")
        positive(
            **{f"{k} {n}": n for k in names for n in getattr(self, k)},
            **{k: getattr(self, k) for k in ("max_train_steps", "points", "jobs")},
            seeds=len(self.seeds),
            kinds=len(self.kinds),
        )
        for ratios, images in (
            (self.ratios, self.images),
            (self.student_ratios, self.student_images),
        ):
            if any(ratio * 2 > images for ratio in ratios):
                raise InputError(
                    "expected ratios that leave two images of a minority class, got "
                    f"{ratios} of {images} images; ask for more images or smaller ratios"
                )
        for seed in self.seeds:
            unsigned(seed)
        for decay in self.weight_decays:
            within(0, weight_decays=decay)
