"""The settings of what measures: evaluations, diagnoses, benchmarks, reports. See config.py."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from get.errors import InputError
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
        feature_network: The classifier whose features are compared.
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
    feature_network: Path
    output_dir: Path
    num_images: int = 5000
    iterations: tuple[int, ...] = (1, 3, 4, 6, 12)
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
class MemoryConfig:
    """Measure the memory of training against iterations, a line a way of differentiating.

    Attributes:
        output_dir: Where memory.json and memory.png go.
        size: A published size of GET.
        image_size: Side of the images.
        batch_size: Samples a step.
        iterations: Numbers of iterations, of the forward and of the implicit backward solve.
    """

    output_dir: Path
    size: str = "GET-S/2"
    image_size: int = 32
    batch_size: int = 2
    iterations: tuple[int, ...] = (1, 6, 12, 24, 48)

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(image_size=self.image_size, batch_size=self.batch_size)
        for count in self.iterations:
            positive(iterations=count)


@dataclass(frozen=True, kw_only=True)
class SolversConfig:
    """Compare our solvers and gradients with torchdeq's on the same maps.

    Attributes:
        output_dir: Where solvers.json goes.
        batch_size: Samples a solve.
        evaluations: Evaluations of the map a solve, forward and backward.
        repeats: Calls of each, in turn, of which the best time counts.
    """

    output_dir: Path
    batch_size: int = 64
    evaluations: int = 20
    repeats: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(batch_size=self.batch_size, repeats=self.repeats)
        if self.evaluations < 4:
            raise InputError(f"expected evaluations of at least 4, got {self.evaluations}")


@dataclass(frozen=True, kw_only=True)
class ModesConfig:
    """Compare every way of training a GET: FID and residual against iterations, time a step.

    Attributes:
        recipe: The recipe whose students are compared; they are trained and evaluated before.
        runs: Where the students' run folders are.
        pairs: Folder of the pairs they were trained on.
        evaluation: Folder of what evaluate.py wrote of them.
        output_dir: Where modes.json, modes.md and modes.png go.
        reference: The student whose step is the unit of time.
        repeats: Steps of each student, in turn, of which the best time counts.
    """

    recipe: str
    runs: Path
    pairs: Path
    evaluation: Path
    output_dir: Path
    reference: str
    repeats: int = 10

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(repeats=self.repeats)


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """Time the training steps of whatever is compared at equal wall time (comparisons.py).

    Attributes:
        output_dir: Where steps.json goes.
        comparisons: The comparisons whose trainings are timed; none means all.
        repeats: Turns, of one step each.
    """

    output_dir: Path
    comparisons: tuple[str, ...] = ()
    repeats: int = 15

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(repeats=self.repeats)


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """Sum up the trainings of a comparison (comparisons.py) over their seeds.

    Attributes:
        name: What the JSON, the table and the plot are called.
        comparisons: Their recipes; the students are trained and evaluated before.
        runs: Where evaluate.py wrote of them: RECIPE/evaluation in this folder.
        output_dir: Where JSON, table and plot go.
    """

    name: str
    comparisons: tuple[str, ...]
    runs: Path
    output_dir: Path


@dataclass(frozen=True, kw_only=True)
class TrainBenchmarkConfig:
    """Time whole training steps beside the machine's matmul rate, and beside torchdeq.

    Attributes:
        output_dir: Where train.json goes.
        sizes: Published sizes, of GET or ViT.
        fast_size: On a GPU: the size whose bf16, compiled step is timed beside its TF32 one.
        image_size: Side of the images.
        batch_size: Samples a step.
        repeats: Turns, of one step each.
    """

    output_dir: Path
    sizes: tuple[str, ...] = ("GET-T/2", "ViT-S/2")
    fast_size: str = "GET-B/2"
    image_size: int = 32
    batch_size: int = 4
    repeats: int = 6

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(image_size=self.image_size, batch_size=self.batch_size, repeats=self.repeats)


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """Compare the rate of a teacher alone with that of the whole job of writing its pairs.

    Attributes:
        output_dir: Where pairs.json goes.
        recipe: The recipe whose teacher and settings are used.
        repeats: Shards written, and made without writing, in turn.
    """

    output_dir: Path
    recipe: str = "digits"
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(repeats=self.repeats)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check that a data set of pairs is whole, and that its teacher made it.

    Attributes:
        folder: The data set.
        deep: Let the teacher make a sample of its batches again.
        teacher: The teacher, for `deep`.
        batches: Teacher batches made again.
        tolerance: Share of pixels that may differ by more than an 8-bit level: other hardware or
            versions round otherwise.
    """

    folder: tyro.conf.Positional[Path]
    deep: bool = False
    teacher: str | None = None
    batches: int = 4
    tolerance: float = 0.001

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(batches=self.batches)


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Compare our reader with webdataset's own decoding of the same pairs.

    Attributes:
        output_dir: Where reader.json goes.
        num_pairs: Pairs written (into a temporary folder) and read; 8 shards share them.
        batch_size: Pairs a batch, and pairs a member of the packed encodings.
        repeats: Passes of each way, in turn, of which the best time counts.
    """

    output_dir: Path
    num_pairs: int = 4096
    batch_size: int = 256
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        positive(num_pairs=self.num_pairs, batch_size=self.batch_size, repeats=self.repeats)
        if self.batch_size % 8 or self.num_pairs % self.batch_size:
            raise InputError(
                f"expected batch_size a multiple of 8 that divides num_pairs, got {self.batch_size}"
                f" and {self.num_pairs}"
            )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Put the measurements of a recipe into one table and one picture.

    Attributes:
        recipe: Name of the recipe, for titles and marks.
        evaluation: Folder of what evaluate.py wrote; report.md and comparison.png go there too.
        readme: A Markdown file whose table between the marks of this recipe is renewed.
        benchmarks: Folder of what benchmark.py wrote; its tables in `readme` are renewed too.
    """

    recipe: str
    evaluation: Path
    readme: Path | None = None
    benchmarks: Path | None = None
