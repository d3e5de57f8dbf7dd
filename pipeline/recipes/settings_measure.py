"""The settings of what measures students: plans, evaluations, diagnoses, reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from get.errors import InputError
from pipeline.recipes.settings_make import positive, unsigned, within
from pipeline.recipes.settings_train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainConfig):
    """Say what a training would do, take and find; nothing is done.

    Attributes:
        num_processes: Processes (GPUs) to plan for.
    """

    num_processes: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        super().__post_init__()
        positive(num_processes=self.num_processes)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare students with their teacher and with real images.

    Attributes:
        pairs: Where the pairs lie (as in training); their held-out shards are the teacher's images,
            and the noise there is what the students are given.
        holdout_shards: The last shards, which no student has seen.
        runs: The students.
        teacher: The teacher that made the pairs.
        real_images: "digits", "photos", an image folder, or one with CIFAR-10.
        feature_networks: The networks whose features are compared: folders of classifiers, or
            names (docs/evaluation.md). Training may use the first; the others judge what was
            trained on it.
        output_dir: One JSON a model is written here.
        num_images: Images a model.
        iterations: Numbers of iterations at which a GET is measured.
        batch_size: Images at once.
    """

    pairs: str | Path
    holdout_shards: int
    runs: tuple[Path, ...]
    teacher: str | Path
    real_images: str
    feature_networks: tuple[Path, ...]
    output_dir: Path
    num_images: int = 5000
    iterations: tuple[int, ...] = (1, 2, 3, 4, 6, 12, 24)
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(
            holdout_shards=self.holdout_shards,
            num_images=self.num_images,
            batch_size=self.batch_size,
            **{f"iterations {k}": k for k in self.iterations},
        )


Metric = Literal["kid", "prc"]


@dataclass(frozen=True, kw_only=True)
class FidConfig:
    """Measure FID, Inception Score and more of any number of images.

    Attributes:
        models: Runs, checkpoints, data sets of pairs, folders of pictures, names of images.
        references: What they are compared with: cifar10-train, cifar10-val, digits-train and
            others, data sets of pairs, folders of pictures, .npz files with mu and sigma.
        feature_networks: inception-v3-compat, dinov2-vit-l-14, clip-vit-l-14, vgg16, `NAME@FILE`
            with a file of weights, or folders of classifiers.
        output_dir: Where fid.json and fid.md go.
        num_images: Images a model and seed.
        seeds: Name, with indices from 0, the noise of the images.
        iterations: Numbers of iterations of a GET; none takes the model's own.
        tol: Relative residuals at which an image stops iterating; 0 never stops early.
        metrics: What else is computed: kid, and prc for precision and recall. They hold all
            features in memory; precision and recall take quadratic time.
        datasets: Folder in which CIFAR-10 lies.
        cache: Folder that keeps the features of references.
        batch_size: Images at once.
        task_index: Which share of the work this job does; None asks Slurm or torchrun.
        num_tasks: Shares in all; None asks Slurm or torchrun.
    """

    models: tuple[str, ...]
    references: tuple[str, ...]
    feature_networks: tuple[str, ...]
    output_dir: Path
    num_images: int = 50_000
    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: tuple[int, ...] = ()
    tol: tuple[float, ...] = (0.0,)
    metrics: tuple[Metric, ...] = ()
    datasets: Path = Path("runs/datasets")
    cache: Path = Path("runs/statistics")
    batch_size: int = 256
    task_index: int | None = None
    num_tasks: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        positive(batch_size=self.batch_size, **{f"iterations {k}": k for k in self.iterations})
        if self.num_images < 4:
            raise InputError(f"expected num_images of at least 4, got {self.num_images}")
        for seed in self.seeds:
            unsigned(seed)
        if not (self.models and self.seeds and self.tol and all(0 <= t < 1 for t in self.tol)):
            raise InputError(
                "expected models, seeds and tol (from 0 to below 1), got "
                f"{self.models}, {self.seeds} and {self.tol}"
            )


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """Look at a trained GET as an equilibrium.

    Attributes:
        model: A run, one of its checkpoints, or any folder with `model_index.json`.
        output_dir: Where diagnosis.json and diagnosis.png go.
        num_images: Samples.
        seed: With an index it names a sample's noise and label.
        iterations: Iterations followed, and evaluations a solver may spend.
        tol: Relative residual that counts as converged.
    """

    model: Path
    output_dir: Path
    num_images: int = 256
    seed: int = 0
    iterations: int = 100
    tol: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        positive(num_images=self.num_images, iterations=self.iterations, tol=self.tol)
        unsigned(self.seed)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Show a student beside its teacher on a page in the browser.

    Attributes:
        model: A run, one of its checkpoints, or any folder with `model_index.json`.
        teacher: The teacher that made the pairs; None shows the student alone.
        port: Of this machine's own address, where the page is; 0 takes any that is free.
    """

    model: Path
    teacher: str | Path | None = None
    port: int = 7860

    def __post_init__(self) -> None:
        """Refuse what is no port."""
        within(0, 65535, port=self.port)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Put the measurements of a recipe into one table and one picture.

    Attributes:
        recipe: Name of the recipe, for titles and marks.
        evaluation: Folder of what evaluate.py wrote; report.md, report.html and comparison.png go
            there too.
        runs: The students, whose trainings are shown.
        watch: Write report.html again and again while trainings run, until Ctrl-C.
        documents: Markdown files; the table between this recipe's marks is renewed in them.
        benchmarks: Folder of what benchmark.py wrote; the tables of benchmarks are renewed too.
        analyses: Folder with a folder of each analysis that analyze.py made, and `certified` of
            what certify.py made; likewise, and report.md has a section for each.
    """

    recipe: str
    evaluation: Path
    runs: tuple[Path, ...] = ()
    watch: bool = False
    documents: tuple[Path, ...] = ()
    benchmarks: Path | None = None
    analyses: Path | None = None
