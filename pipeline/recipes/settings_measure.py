"""The settings of what measures students: evaluations, diagnoses, reports."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.recipes.settings_make import positive, unsigned


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare students with their teacher and with real images.

    Attributes:
        pairs: Where the pairs lie (as in training); their held-out shards are the teacher's images,
            and the noise there is what the students are given.
        holdout_shards: The last shards, which no student has seen.
        runs: The students.
        teacher: The teacher that made the pairs.
        real_images: "digits", "photos", or an image folder.
        feature_networks: The classifiers whose features are compared. Training may use the first;
            the others judge what was trained on it.
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
        positive(num_images=self.num_images, batch_size=self.batch_size)


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
class ReportConfig:
    """Put the measurements of a recipe into one table and one picture.

    Attributes:
        recipe: Name of the recipe, for titles and marks.
        evaluation: Folder of what evaluate.py wrote; report.md and comparison.png go there too.
        documents: Markdown files; the table between this recipe's marks is renewed in them.
        benchmarks: Folder of what benchmark.py wrote; the tables of benchmarks are renewed too.
    """

    recipe: str
    evaluation: Path
    documents: tuple[Path, ...] = ()
    benchmarks: Path | None = None
