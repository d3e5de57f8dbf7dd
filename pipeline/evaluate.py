"""Measure students beside their teacher: distances from real images, memorisation, cost, speed.

Teacher and students are compared on the same noise: that of the held-out pairs, which no student
has seen; the teacher's images are those pairs themselves. One JSON a model. Next: report.py.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.files import new_file, read_json, write_json
from data.manifest import Manifest, count_shards, read_manifest
from data.pairs import Pairs
from data.reader import read_shard
from data.teachers import DiffusersTeacher, EdmTeacher, Execution, Sampler, open_teacher
from get.cost import count_macs, count_parameters, images_per_second
from get.errors import InputError
from get.images import from_uint8, grid, to_uint8
from get.metrics import features_of, nearest_distance, score
from get.metrics.features import Reference
from get.models import GET, ViT
from get.sampling import generate
from pipeline import cli
from pipeline.jobs.provenance import provenance
from pipeline.jobs.students import load_student, weights_hash
from pipeline.recipes import EVALUATIONS
from pipeline.recipes.settings_measure import EvaluateConfig

SHOWN = 3  # images a class in the picture


def measure_images(
    reference: Reference, images: Tensor, labels: Tensor | None
) -> dict[str, object]:
    """Return every score of generated images (as 8-bit PNGs would hold them)."""
    images = from_uint8(to_uint8(images))
    features = reference.features_of(images)
    result: dict[str, object] = {
        split: asdict(score(features, real)) for split, real in reference.features.items()
    }
    if labels is not None:
        device = reference.network.device
        logits = features_of(
            lambda x: reference.network(x.to(device)), images, reference.batch_size
        )
        result["class_accuracy"] = float((logits.argmax(1) == labels).double().mean())
    training = reference.images["training"]
    result["nearest_training_image"] = float(nearest_distance(images, training).mean())
    real = nearest_distance(reference.images["held_out"], training)
    result["nearest_training_image_of_held_out"] = float(real.mean())
    return result


@dataclass(frozen=True)
class Evaluation:
    """What all models of one evaluation share."""

    config: EvaluateConfig
    manifest: Manifest
    held_out: Pairs
    first_index: int
    reference: Reference

    def of(self, weights: str) -> dict[str, object]:
        """Return what a measurement measures; while that stands it is not made again."""
        return {
            "weights": weights,
            "iterations": list(self.config.iterations),
            "num_images": self.config.num_images,
            "real_images": self.config.real_images,
            "feature_network": weights_hash(self.config.feature_network, "."),
            "teacher": self.manifest.teacher,
            "seed": self.manifest.seed,
            "first_index": self.first_index,
        }


def main(config: EvaluateConfig) -> None:
    """Evaluate the teacher and every run that has not been evaluated as it is now."""
    device = cli.local_device()
    manifest = read_manifest(config.pairs)
    held_out, first_index = read_held_out(config, manifest)
    reference = Reference(
        config.feature_network, config.real_images, manifest.image_shape, device, config.batch_size
    )
    evaluation = Evaluation(config, manifest, held_out, first_index, reference)
    sampler, execution = Sampler(**manifest.sampler), Execution(**manifest.execution)
    teacher = open_teacher(config.teacher, sampler, device, execution)
    if teacher.fingerprint != manifest.teacher:
        raise InputError(
            f"expected the teacher that made {config.pairs}, got {config.teacher}, another one; "
            "name the right one with --teacher"
        )
    weights = {"teacher": manifest.teacher}
    students = {}
    for run in config.runs:
        if run.name in weights:
            raise InputError(f"expected runs of different names, got {run.name} twice; rename one")
        students[run.name] = model = load_student(run, device)
        weights[run.name] = weights_hash(run)
        shape = (model.channels, model.image_size, model.image_size)
        if shape != manifest.image_shape:
            raise InputError(
                f"expected a model of {manifest.image_shape} images in {run}, got one of {shape}; "
                "it was trained on other pairs"
            )
    done = [
        name
        for name, value in weights.items()
        if (path := config.output_dir / f"{name}.json").exists()
        and read_json(path)["of"] == evaluation.of(value)
    ]
    if len(done) == len(weights):
        print(f"measurements {config.output_dir}: all made; nothing to do")
        return

    # Speeds are measured side by side in one process: only their ratios mean anything.
    size = min(config.batch_size, config.num_images)
    part = held_out.take(slice(size))
    teacher_rate = images_per_second(lambda: teacher(part.noise, part.labels), size)
    missing = [name for name in weights if name not in done]
    passes = sum(len(iterations_of(config, students.get(name))) for name in missing)
    bar = cli.progress_bar(passes * config.num_images, "evaluate", "image")
    with cli.Signals() as signals, bar:

        def progress(count: int) -> None:
            bar.update(count)
            if signals.received:  # the model in hand is dropped
                bar.close()
                signals.exit(signals.received, f"whole measurements are in {config.output_dir}")

        for name in missing:
            if name == "teacher":
                result, images = evaluate_teacher(evaluation, teacher, teacher_rate)
                progress(len(images))
            else:
                run = next(run for run in config.runs if run.name == name)
                result, images = evaluate_student(
                    evaluation, students[name], run, teacher_rate, progress
                )
            save_picture(config.output_dir / f"{name}.png", images, held_out.labels)
            whole = {"name": name, "of": evaluation.of(weights[name]), **result, **provenance()}
            write_json(config.output_dir / f"{name}.json", whole)
    print(f"measurements {config.output_dir}")


def read_held_out(config: EvaluateConfig, manifest: Manifest) -> tuple[Pairs, int]:
    """Return the first `num_images` held-out pairs and the index of the first of them.

    Raises:
        InputError: If there are fewer.
    """
    first = count_shards(config.pairs) - config.holdout_shards
    found = config.holdout_shards * manifest.pairs_per_shard
    if first < 0 or found < config.num_images:
        raise InputError(
            f"expected {config.num_images} held-out pairs in {config.pairs}, got {max(found, 0)} "
            f"in {config.holdout_shards} shards; make more pairs or ask for fewer images"
        )
    needed = -(-config.num_images // manifest.pairs_per_shard)
    pairs = Pairs.cat([read_shard(config.pairs, first + i) for i in range(needed)])
    chosen = pairs.take(slice(config.num_images)).as_floats()
    return chosen, first * manifest.pairs_per_shard


def evaluate_teacher(
    evaluation: Evaluation, teacher: DiffusersTeacher | EdmTeacher, rate: float
) -> tuple[dict, Tensor]:
    """Measure the teacher by the held-out pairs it has already made."""
    held_out, card = evaluation.held_out, Path(evaluation.config.teacher) / "card.json"
    images, first = held_out.images, held_out.take(slice(1))
    return {
        "kind": "teacher",
        "parameters": count_parameters(teacher.network),
        "evaluations": teacher.evaluations,
        "train_seconds": read_json(card)["train_seconds"] if card.exists() else None,
        "macs": count_macs(lambda: teacher(first.noise, first.labels)),
        "images_per_second": rate,
        **measure_images(evaluation.reference, images, held_out.labels),
    }, images


def iterations_of(config: EvaluateConfig, model: GET | ViT | None) -> list[int | None]:
    """Return the numbers of iterations at which a model is measured; a teacher or ViT once."""
    if not isinstance(model, GET):
        return [None]
    return [*sorted({*config.iterations, model.iterations})]


def evaluate_student(
    evaluation: Evaluation,
    model: GET | ViT,
    folder: Path,
    teacher_rate: float,
    progress: Callable[[int], object],
) -> tuple[dict, Tensor]:
    """Measure one run, a GET at every number of iterations; return figures and images."""
    held_out = evaluation.held_out
    target, size = held_out.images, evaluation.config.batch_size

    def make(iterations: int | None, start: int, count: int) -> Tensor:
        part, index = held_out.take(slice(start, start + count)), evaluation.first_index + start
        return generate(
            model,
            part.noise,
            part.labels,
            seed=evaluation.manifest.seed,
            indices=range(index, index + len(part)),
            iterations=iterations,
        )

    def measure(iterations: int | None) -> tuple[dict, Tensor]:
        images = torch.cat([make(iterations, at, size) for at in range(0, len(target), size)])
        progress(len(images))
        rate = images_per_second(lambda: make(iterations, 0, size), min(size, len(target)))
        return {
            "macs": count_macs(lambda: make(iterations, 0, 1)),
            "images_per_second": rate,
            "speedup_over_teacher": rate / teacher_rate,
            "l1_to_teacher": float((images - target).abs().mean()),
            **measure_images(evaluation.reference, images, held_out.labels),
        }, images

    run = read_json(folder / "finished.json")
    result = {
        "kind": type(model).__name__,
        "parameters": count_parameters(model),
        "evaluations": 1,
        "train_seconds": run["seconds"],
        "train_steps": run["steps"],
    }
    if isinstance(model, ViT):
        figures, images = measure(None)
        return result | figures, images
    made = {k: measure(k) for k in iterations_of(evaluation.config, model)}
    by_iterations = {k: figures for k, (figures, _) in made.items()}
    result |= {"default_iterations": model.iterations, "by_iterations": by_iterations}
    return result, made[model.iterations][1]


def save_picture(
    path: Path,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"] | None,
) -> None:
    """Write the first images of every class, a column a class; nothing for latents."""
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
    cli.run(main, EVALUATIONS)
