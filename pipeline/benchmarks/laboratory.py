"""Short trainings in memory, for comparisons of many of them: what all of them share.

The pairs are read once. A run is trained by THE training step, measured on held-out noise now and
then, and judged at its best point by networks that did not choose this point. Its figures are a
file of its own, so that a comparison that was stopped goes on with the runs that are missing.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from data.files import read_json, write_json
from data.manifest import Manifest, count_shards, read_manifest
from data.pairs import Pairs
from data.reader import read_shard
from data.real.features import RealFeatures
from get.errors import InputError
from get.metrics import frechet_distance
from get.models import Student
from get.sampling import generate
from pipeline.benchmarks.results import BenchmarkConfig, check_common
from pipeline.cli import progress_bar
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import RUNS
from pipeline.recipes.settings_make import positive
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import build_frechet, build_objective, build_student
from pipeline.training.data_sets import build_order, open_data_sets
from pipeline.training.step import TrainingStep
from pipeline.training.step_cost import image_macs


@dataclass(frozen=True, kw_only=True)
class LaboratoryConfig(BenchmarkConfig):
    """What comparisons of short trainings have in common.

    Attributes:
        recipe: Its real images and feature networks are used; the first network chooses, the
            others judge.
        pairs: Folder of the pairs.
        seeds: Of initial weights and order.
        max_train_steps: Steps of a run, or what equal time is measured by.
        evaluate_steps: A model is measured every so many steps.
        images: Held-out noises of which images are made.
    """

    recipe: str = "digits"
    pairs: Path = RUNS / "pairs" / "digits"
    seeds: tuple[int, ...] = (0, 1, 2)
    max_train_steps: int = 1000
    evaluate_steps: int = 200
    images: int = 4096

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        positive(
            seeds=len(self.seeds),
            max_train_steps=self.max_train_steps,
            evaluate_steps=self.evaluate_steps,
            images=self.images,
        )


def common(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return those of a comparison's settings that all its runs have in common."""
    names = (f.name for f in fields(LaboratoryConfig) if f.name not in ("seeds", "output_dir"))
    return {name: str(settings[name]) for name in names}


class Laboratory:
    """The pairs in memory, held-out noise, and the real images in every feature network."""

    def __init__(self, config: LaboratoryConfig, folder: str) -> None:
        """Read the pairs and compute the features of the real images.

        Args:
            config: The settings.
            folder: Of the runs' files, in the output folder.

        Raises:
            InputError: If there are too few held-out pairs, if the folder has runs with other
                settings, or see `RealFeatures`.
        """
        torch.set_num_threads(1)
        keep_freed_memory()
        self.config, recipe = config, RECIPES[config.recipe]
        evaluate, student = recipe.evaluate, next(iter(recipe.students.values()))
        assert evaluate is not None
        self.folder = config.output_dir / folder
        self.settings: TrainConfig = student
        self.manifest: Manifest = read_manifest(config.pairs)
        shards = count_shards(config.pairs)
        last = range(shards - student.holdout_shards, shards)
        held_out = self._read(last).take(slice(config.images))
        if len(held_out) < config.images:
            raise InputError(
                f"expected {config.images} held-out pairs in {config.pairs}, got "
                f"{len(held_out)}; write more, or set images lower"
            )
        self.held_out, self.pairs = held_out.as_floats(), self._read(range(last.start))
        check_common(self.folder, common(vars(config)))
        self.networks = {
            path.name: RealFeatures(
                path, evaluate.real_images, self.manifest.image_shape, torch.device("cpu")
            )
            for path in evaluate.feature_networks
        }

    def _read(self, shards: range) -> Pairs:
        return Pairs.cat([read_shard(self.config.pairs, i, self.manifest) for i in shards])

    def measured(
        self,
        name: str,
        settings: TrainConfig,
        num_pairs: int = 0,
        longer: tuple[int, ...] = (),
    ) -> dict[str, Any]:
        """Return the figures of a run, which is trained now if its file is missing.

        Args:
            name: Of its file.
            settings: Of its training.
            num_pairs: The first so many pairs are trained on; 0 is all.
            longer: Other numbers of iterations that a GET is judged at.

        Raises:
            InputError: If there are not so many.
        """
        if not 0 <= num_pairs <= len(self.pairs):
            raise InputError(
                f"expected num_pairs up to {len(self.pairs)}, which {self.config.pairs} has for "
                f"training, or 0 for all, got {num_pairs}"
            )
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, self._train(name, settings, num_pairs, longer))
        return read_json(path)

    def _train(
        self, name: str, settings: TrainConfig, num_pairs: int, longer: tuple[int, ...]
    ) -> dict[str, Any]:
        step = self.training_step(settings)
        pairs = self.pairs.take(slice(num_pairs or None))
        curve, best, weights = [], float("inf"), step.updates.average
        batches = order(len(pairs), settings.global_batch_size, settings.seed)
        with progress_bar(settings.max_train_steps, name, "step") as bar:
            for number in range(settings.max_train_steps):
                step(pairs.take(next(batches)).as_floats(), number)
                bar.update()
                done = number + 1
                if done % self.config.evaluate_steps == 0 or done == settings.max_train_steps:
                    distance = self._chosen_by(step.updates.average)
                    curve.append({"step": done, "distance": distance})
                    if distance < best:
                        best, weights = distance, deepcopy(step.updates.average)
        return {
            "seed": settings.seed,
            "num_pairs": num_pairs,
            "steps": settings.max_train_steps,
            "parameters": sum(p.numel() for p in weights.parameters()),
            "curve": curve,
            "best": best,
            **self._judged(weights),
            "longer": {times: self._judged(weights, times) for times in longer},
        }

    def training_step(self, settings: TrainConfig) -> TrainingStep:
        """Return the step that trains a new student, with the Frechet distance if it is used."""
        torch.manual_seed(settings.seed)
        student, frechet = build_student(settings, self.manifest), None
        if settings.frechet_weight:
            here = replace(settings, pairs=self.config.pairs)
            order = build_order(here, open_data_sets(here), 1)
            frechet = build_frechet(here, self.manifest, order, Accelerator(cpu=True))
        objective = build_objective(settings, student, frechet)
        return TrainingStep(settings, student, objective=objective)

    def _images(self, model: Student, iterations: int | None = None) -> Tensor:
        """Return the images of the held-out noise."""
        noise, labels = self.held_out.noise, self.held_out.labels
        which = {"seed": 0, "indices": range(len(noise)), "iterations": iterations}
        return generate(model.eval(), noise, labels, **which)

    def _distance(self, network: str, images: Tensor) -> float:
        """Return the Frechet distance from the real training images in a network."""
        real = self.networks[network]
        return frechet_distance(real.features_of(images), real.features["training"])

    def _chosen_by(self, model: Student) -> float:
        return self._distance(next(iter(self.networks)), self._images(model))

    def _judged(self, model: Student, iterations: int | None = None) -> dict[str, Any]:
        """Return MACs, Frechet distances in the judges, and the difference from the teacher."""
        images = self._images(model, iterations)
        _, *judges = self.networks
        return {
            "macs": image_macs(model, iterations),
            "judges": {name: self._distance(name, images) for name in judges},
            "l1_to_teacher": float((images - self.held_out.images).abs().mean()),
        }


def order(pairs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of batches without end: every pair once an epoch, in a new order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(pairs, generator=generator)])
        yield left[:batch_size]
        left = left[batch_size:]
