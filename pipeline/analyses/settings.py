"""The settings of the analyses."""

from dataclasses import dataclass
from pathlib import Path

from get.analysis import ERF, RELU, TANH
from get.errors import InputError
from pipeline.benchmarks.results import BenchmarkConfig
from pipeline.recipes.recipe import RUNS
from pipeline.recipes.settings_make import positive, unsigned

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
    seed: int = 0
    full: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing and unknown activations."""
        numbers = {f"{k} {n}": n for k in ("widths", "depths") for n in getattr(self, k)}
        names = ("points", "input_size", "states", "normality_draws", "sets", "weight_std")
        positive(**numbers, **{name: getattr(self, name) for name in names})
        unsigned(self.seed)
        unknown = [name for name in self.activations if name not in KNOWN]
        if unknown or not self.activations:
            raise InputError(
                f"expected activations among {', '.join(KNOWN)}, got {', '.join(unknown)}; "
                "others can be used from Python, as docs/gaussian_process.md shows"
            )
