"""Measure students beside their teacher: distances from real images, memorisation, cost, speed.

Teacher and students are compared on the same noise: that of the held-out pairs, which no student
has seen; the teacher's images are those pairs themselves. One JSON a model. Next: report.py.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from data.pairs import Manifest, count_shards, read_manifest
from data.reader import Shard, as_floats, concatenate, read_shard
from data.references import real_images
from data.teachers import DiffusersTeacher, Sampler
from get.cost import count_macs, count_parameters, images_per_second
from get.errors import InputError
from get.images import from_uint8, grid, to_uint8
from get.metrics import features_of, nearest_distance, score
from get.models import GET, ViT
from get.models.classifier import Classifier
from get.sampling import generate
from pipeline import cli
from pipeline.config import EvaluateConfig
from pipeline.provenance import provenance
from pipeline.recipes import EVALUATIONS
from pipeline.run import new_file, read_json, write_json
from pipeline.students import load_student, weights_hash

SHOWN = 3  # images a class in the picture


class Reference:
    """The real images and their features, made once for all models."""

    def __init__(self, config: EvaluateConfig, device: torch.device) -> None:
        """Load the feature network and run it over the real images."""
        try:
            network = Classifier.from_pretrained(config.feature_network, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"expected a feature network in {config.feature_network}, got "
                f"{type(error).__name__}; make one with pipeline/train_classifier.py"
            ) from error
        self.network, self.batch_size = network.to(device).eval(), config.batch_size
        self.images = {
            split: real_images(config.real_images, split).images
            for split in ("training", "held_out")
        }
        self.features = {split: self.features_of(x) for split, x in self.images.items()}

    def features_of(self, images: Tensor) -> Tensor:
        """Return float64 features of images in [-1, 1]."""
        device = self.network.device
        return features_of(lambda x: self.network.features(x.to(device)), images, self.batch_size)

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, object]:
        """Return every score of generated images (as 8-bit PNGs would hold them)."""
        images = from_uint8(to_uint8(images))
        features = self.features_of(images)
        result: dict[str, object] = {
            split: asdict(score(features, real)) for split, real in self.features.items()
        }
        if labels is not None:
            device = self.network.device
            logits = features_of(lambda x: self.network(x.to(device)), images, self.batch_size)
            result["class_accuracy"] = float((logits.argmax(1) == labels).double().mean())
        training = self.images["training"]
        result["nearest_training_image"] = float(nearest_distance(images, training).mean())
        return result


def main(config: EvaluateConfig) -> None:
    """Evaluate the teacher and every run that has not been evaluated as it is now."""
    device = cli.local_device()
    manifest = read_manifest(config.pairs)
    held_out = read_held_out(config, manifest)
    reference = Reference(config, device)
    real = nearest_distance(reference.images["held_out"], reference.images["training"])
    common = {
        "num_images": config.num_images,
        "real_images": config.real_images,
        "feature_network": weights_hash(config.feature_network, "."),
        "pairs": manifest.teacher,
        "pairs_seed": manifest.seed,
        "first_index": first_index(config, manifest),
    }
    teacher = DiffusersTeacher(config.teacher, Sampler(**manifest.sampler), device)
    if teacher.fingerprint != manifest.teacher:
        raise InputError(
            f"expected the teacher that made {config.pairs}, got {config.teacher}, another one; "
            "name the right one with --teacher"
        )
    noise, labels = held_out.noise[: config.batch_size], take(held_out.labels, config.batch_size)
    teacher_rate: float | None = None
    jobs = [("teacher", config.teacher), *((run.name, run) for run in config.runs)]
    for name, folder in tqdm(jobs, desc="evaluate", unit="model", dynamic_ncols=True):
        path = config.output_dir / f"{name}.json"
        of = {**common, "weights": manifest.teacher if name == "teacher" else weights_hash(folder)}
        if name != "teacher":
            of["iterations"] = list(config.iterations)
        if path.exists() and read_json(path)["of"] == of:
            tqdm.write(f"{path} is measured; nothing to do")
            continue
        if teacher_rate is None:  # in this run, so that ratios mean something
            teacher_rate = images_per_second(lambda: teacher(noise, labels), len(noise))
        if name == "teacher":
            result = {
                "kind": "teacher",
                "parameters": count_parameters(teacher.unet),
                "evaluations": teacher.evaluations,
                "macs": count_macs(lambda: teacher(noise[:1], take(labels, 1))),
                "images_per_second": teacher_rate,
                **reference.measure(as_floats(held_out.images), held_out.labels),
            }
            images = as_floats(held_out.images)
            card = config.teacher / "card.json"
            result["train_seconds"] = read_json(card)["train_seconds"] if card.exists() else None
        else:
            result, images = evaluate_student(
                config, manifest, reference, held_out, folder, teacher_rate
            )
        result["nearest_training_image_of_held_out"] = float(real.mean())
        write_json(path, {"name": name, "of": of, **result, **provenance()})
        save_picture(config.output_dir / f"{name}.png", images, held_out.labels)
    print(f"measurements {config.output_dir}")


def read_held_out(config: EvaluateConfig, manifest: Manifest) -> Shard:
    """Return the first `num_images` held-out pairs.

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
    shards = concatenate([read_shard(config.pairs, first + i) for i in range(needed)])
    return Shard(*(take(part, config.num_images) for part in shards))


def first_index(config: EvaluateConfig, manifest: Manifest) -> int:
    """Return the index of the first held-out pair."""
    return (count_shards(config.pairs) - config.holdout_shards) * manifest.pairs_per_shard


def take(part: Tensor | None, count: int) -> Tensor | None:
    """Return the first rows of an optional tensor."""
    return None if part is None else part[:count]


def evaluate_student(
    config: EvaluateConfig,
    manifest: Manifest,
    reference: Reference,
    held_out: Shard,
    folder: Path,
    teacher_rate: float,
) -> tuple[dict, Tensor]:
    """Measure one run, a GET at every number of iterations; return figures and images."""
    model = load_student(folder, cli.local_device())
    c = model.config
    if (c.channels, c.image_size) != tuple(manifest.image_shape[:2]):
        raise InputError(
            f"expected a model of {manifest.image_shape} images in {folder}, got one of "
            f"{(c.channels, c.image_size, c.image_size)}; it was trained on other pairs"
        )
    target = as_floats(held_out.images)
    first = first_index(config, manifest)

    def sampler(iterations: int | None) -> Callable[[int, int], Tensor]:
        def at(start: int, count: int) -> Tensor:
            end = min(start + count, len(target))
            return generate(
                model,
                held_out.noise[start:end],
                None if held_out.labels is None else held_out.labels[start:end],
                seed=manifest.seed,
                indices=range(first + start, first + end),
                iterations=iterations,
            )

        return at

    def measure(iterations: int | None) -> tuple[dict, Tensor]:
        make = sampler(iterations)
        size = config.batch_size
        images = torch.cat([make(at, size) for at in range(0, len(target), size)])
        rate = images_per_second(lambda: make(0, size), min(size, len(target)))
        return {
            "macs": count_macs(lambda: make(0, 1)),
            "images_per_second": rate,
            "speedup_over_teacher": rate / teacher_rate,
            "l1_to_teacher": float((images - target).abs().mean()),
            **reference.measure(images, held_out.labels),
        }, images

    result = {
        "kind": type(model).__name__,
        "parameters": count_parameters(model),
        "evaluations": 1,
        "train_seconds": read_json(folder / "finished.json")["seconds"],
        "train_steps": read_json(folder / "finished.json")["steps"],
    }
    if isinstance(model, ViT):
        figures, images = measure(None)
        return {**result, **figures}, images
    by_iterations = {}
    for iterations in sorted({*config.iterations, c.iterations}):
        by_iterations[iterations], made = measure(iterations)
        if iterations == c.iterations:
            images = made
    result |= {"default_iterations": c.iterations, "by_iterations": by_iterations}
    return result, images


def save_picture(path: Path, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"] | None) -> None:
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
