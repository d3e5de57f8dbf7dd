"""Compare students with their teacher: distances from real images, memorisation, cost, speed.

All make images of the same noise: that of the held-out pairs, which no student has seen. The
teacher's images are those pairs themselves. One JSON per model. Next: report.py.
"""

from pipeline import cli
from pipeline.recipes.measures import evaluations

if __name__ == "__main__":
    cli.check_arguments(evaluations)

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.files import new_file, read_json, write_json
from data.manifest import Manifest, count_shards, read_manifest
from data.pairs import Pairs
from data.reader import read_shard
from data.real.scores import RealScores
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher
from get.cost import count_macs, count_parameters, images_per_second
from get.errors import InputError
from get.images import from_uint8, grid, to_uint8
from get.models import Student
from get.sampling import generate
from pipeline.jobs.processes import local_device
from pipeline.jobs.provenance import provenance
from pipeline.jobs.students import load_student, weights_hash
from pipeline.recipes.settings_measure import EvaluateConfig

SHOWN = 3  # images per class in the picture

Measured = tuple[dict[str, Any], Tensor]  # figures, and the images they are of


def main(config: EvaluateConfig) -> None:
    """Evaluate the teacher and every run whose JSON is missing or out of date."""
    device = local_device()
    manifest = read_manifest(config.pairs)
    held_out, first_index = read_held_out(config, manifest)
    real = RealScores(
        config.feature_networks, config.real_images, manifest.image_shape, device, config.batch_size
    )
    teacher = open_their_teacher(config, manifest, device)
    students = load_students(config, manifest, device)
    weights = {"teacher": manifest.teacher}
    weights |= {run.name: weights_hash(run) for run in config.runs}
    evaluation = Evaluation(config, manifest, held_out, first_index, real)
    missing = [name for name in weights if not evaluation.is_measured(name, weights[name])]
    if not missing:
        print(f"measurements {config.output_dir}: all made; nothing to do")
        return

    # Speeds are measured in one process, one after the other: only their ratios mean anything.
    part = held_out.take(slice(config.batch_size))
    teacher_rate = images_per_second(lambda: teacher(part.noise, part.labels), len(part))
    passes = sum(len(iterations_of(config, students.get(name))) for name in missing)
    bar = cli.progress_bar(passes * config.num_images, "evaluate", "image")
    with cli.Signals() as signals, bar:

        def progress(count: int) -> None:
            bar.update(count)
            if signals.received:  # the current model's measurements are dropped
                bar.close()
                signals.exit(signals.received, f"complete measurements are in {config.output_dir}")

        for name in missing:
            if name == "teacher":
                figures, images = evaluation.of_teacher(teacher, teacher_rate)
                progress(len(images))
            else:
                run = next(run for run in config.runs if run.name == name)
                student = students[name]
                figures, images = evaluation.of_student(student, run, teacher_rate, progress)
            save_picture(config.output_dir / f"{name}.png", images, held_out.labels)
            inputs = evaluation.inputs(weights[name])
            whole = {"name": name, "inputs": inputs, **figures, **provenance()}
            write_json(config.output_dir / f"{name}.json", whole)
    print(f"measurements {config.output_dir}")


@dataclass(frozen=True)
class Evaluation:
    """What all models of one evaluation share."""

    config: EvaluateConfig
    manifest: Manifest
    held_out: Pairs
    first_index: int
    real: RealScores

    def inputs(self, weights: str) -> dict[str, object]:
        """Return all that a measurement depends on."""
        return {
            "weights": weights,
            "iterations": list(self.config.iterations),
            "num_images": self.config.num_images,
            "real_images": self.config.real_images,
            "feature_networks": [n.network.fingerprint for n in self.real.networks.values()],
            "teacher": self.manifest.teacher,
            "seed": self.manifest.seed,
            "first_index": self.first_index,
        }

    def is_measured(self, name: str, weights: str) -> bool:
        """Say whether a model's JSON exists and was made from these inputs."""
        path = self.config.output_dir / f"{name}.json"
        return path.exists() and read_json(path).get("inputs") == self.inputs(weights)

    def of_teacher(self, teacher: Teacher, rate: float) -> Measured:
        """Measure the teacher by the held-out pairs it has already made."""
        images, first = self.held_out.images, self.held_out.take(slice(1))
        card = Path(self.config.teacher) / "card.json"
        return {
            "kind": "teacher",
            "parameters": count_parameters(teacher.network),
            "evaluations": teacher.evaluations,
            "train_seconds": read_json(card)["train_seconds"] if card.exists() else None,
            "macs": count_macs(lambda: teacher(first.noise, first.labels)),
            "images_per_second": rate,
            **self.scores(images),
        }, images

    def of_student(
        self,
        student: Student,
        folder: Path,
        teacher_rate: float,
        progress: Callable[[int], object],
    ) -> Measured:
        """Measure one run; a student that iterates at every number of iterations."""
        measured = {}
        for iterations in iterations_of(self.config, student):
            measured[iterations] = self._at(student, iterations, teacher_rate)
            progress(len(self.held_out))
        run = read_json(folder / "finished.json")
        figures, images = measured[student.iterations]
        if student.iterations is not None:
            by_iterations = {k: at for k, (at, _) in measured.items()}
            figures = {"default_iterations": student.iterations, "by_iterations": by_iterations}
        return {
            "kind": type(student).__name__,
            "parameters": count_parameters(student),
            "evaluations": 1,
            "train_seconds": run["seconds"],
            "train_steps": run["steps"],
            "trained_on": trained_on(folder),
            **figures,
        }, images

    def _at(self, student: Student, iterations: int | None, teacher_rate: float) -> Measured:
        """Measure a student at one number of iterations."""

        def make(pairs: Pairs) -> Tensor:
            return generate(
                student,
                pairs.noise,
                pairs.labels,
                seed=self.manifest.seed,
                indices=range(self.first_index, self.first_index + len(pairs)),
                iterations=iterations,
                batch_size=self.config.batch_size,
            )

        images, one = make(self.held_out), self.held_out.take(slice(1))
        batch = self.held_out.take(slice(self.config.batch_size))
        rate = images_per_second(lambda: make(batch), len(batch))
        return {
            "macs": count_macs(lambda: make(one)),
            "images_per_second": rate,
            "speedup_over_teacher": rate / teacher_rate,
            "l1_to_teacher": float((images - self.held_out.images).abs().mean()),
            **self.scores(images),
        }, images

    def scores(self, images: Tensor) -> dict[str, object]:
        """Return every score of generated images (as 8-bit PNGs would hold them)."""
        return self.real(from_uint8(to_uint8(images)), self.held_out.labels)


def trained_on(run: Path) -> str | None:
    """Return the name of the feature network that a run was trained on, if it was."""
    config = read_json(run / "run.json")["config"]
    return Path(config["feature_network"]).name if config.get("frechet_weight") else None


def iterations_of(config: EvaluateConfig, student: Student | None) -> list[int | None]:
    """Return the numbers of iterations to measure at; [None] for what does not iterate."""
    if student is None or student.iterations is None:
        return [None]
    return [*sorted({*config.iterations, student.iterations})]


def open_their_teacher(config: EvaluateConfig, manifest: Manifest, device: torch.device) -> Teacher:
    """Open the teacher that made the pairs.

    Raises:
        InputError: If the teacher named is another one.
    """
    sampler, execution = Sampler(**manifest.sampler), Execution(**manifest.execution)
    teacher = open_teacher(config.teacher, sampler, device, execution)
    if teacher.fingerprint != manifest.teacher:
        raise InputError(
            f"expected the teacher that made {config.pairs}, got {config.teacher}, another one; "
            "name the right one with --teacher"
        )
    return teacher


def load_students(
    config: EvaluateConfig, manifest: Manifest, device: torch.device
) -> dict[str, Student]:
    """Load the students of all runs, by the names of the runs.

    Raises:
        InputError: If two runs share a name or one was trained on other images.
    """
    students: dict[str, Student] = {}
    for run in config.runs:
        if run.name in ("teacher", *students):
            raise InputError(f"expected runs of different names, got {run.name} twice; rename one")
        students[run.name] = student = load_student(run, device)
        if student.image_shape != manifest.image_shape:
            raise InputError(
                f"expected a model of {manifest.image_shape} images in {run}, got one of "
                f"{student.image_shape}; it was trained on other pairs"
            )
    return students


def read_held_out(config: EvaluateConfig, manifest: Manifest) -> tuple[Pairs, int]:
    """Return the first `num_images` held-out pairs and the index of the first of them.

    Raises:
        InputError: If there are fewer.
    """
    first = count_shards(config.pairs) - config.holdout_shards
    count = config.holdout_shards * manifest.pairs_per_shard
    if first < 0 or count < config.num_images:
        raise InputError(
            f"expected {config.num_images} held-out pairs in {config.pairs}, got {max(count, 0)} "
            f"in {config.holdout_shards} shards; make more pairs or ask for fewer images"
        )
    needed = -(-config.num_images // manifest.pairs_per_shard)
    pairs = Pairs.cat([read_shard(config.pairs, first + i) for i in range(needed)])
    chosen = pairs.take(slice(config.num_images)).as_floats()
    return chosen, first * manifest.pairs_per_shard


def save_picture(
    path: Path,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"] | None,
) -> None:
    """Write the first images of every class, one class per column; nothing for latents."""
    if images.shape[1] not in (1, 3):
        return
    if labels is None:
        chosen = list(range(min(10 * SHOWN, len(images))))
    else:
        classes = range(min(10, int(labels.max()) + 1))
        per_class = [(labels == k).nonzero().flatten()[:SHOWN].tolist() for k in classes]
        rows = range(min(map(len, per_class)))
        chosen = [places[row] for row in rows for places in per_class]
    with new_file(path) as temporary:
        sheet = grid(to_uint8(images[chosen]), 10, scale=max(1, 48 // images.shape[-1]))
        sheet.save(temporary, format="png")


if __name__ == "__main__":
    cli.run(main, evaluations)
