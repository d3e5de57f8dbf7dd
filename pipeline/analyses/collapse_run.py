"""One training, watched: collapse, accuracy and equilibrium residual at points of its course."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.files import read_json, write_json
from data.real import Labelled, real_images
from get.analysis import class_means, mean_cosine, neural_collapse
from get.cost import count_parameters
from get.equilibrium import Outcome
from get.models.image_classifier import EquilibriumClassifier, ImageClassifier
from pipeline.analyses.settings import CollapseConfig, Kind
from pipeline.analyses.unequal import Cell, Unequal, training_set
from pipeline.recipes.settings_classify import (
    ClassifierShape,
    EquilibriumShape,
    ImageClassifierConfig,
)
from pipeline.training.classify import ClassifierTraining

BATCH = 512  # images at once where features are looked at
Task = tuple[CollapseConfig, Cell, Kind, int]


def measured(task: Task) -> dict[str, Any]:
    """Return what a training shows; it is made now if its file is missing."""
    config, cell, kind, seed = task
    path = file_of(config, cell, kind, seed)
    if not path.exists():
        write_json(path, _train(config, cell, kind, seed))
    return read_json(path)


def file_of(config: CollapseConfig, cell: Cell, kind: Kind, seed: int) -> Path:
    """Return the file of a training."""
    name = f"{cell.name}-{kind}-seed{seed}-steps{config.max_train_steps}.json"
    return config.output_dir / "trainings" / name


def _train(config: CollapseConfig, cell: Cell, kind: Kind, seed: int) -> dict[str, Any]:
    images = training_set(config, cell, seed)
    held_out = real_images(config.real_images, "held_out")
    settings = ImageClassifierConfig(
        output_dir=config.output_dir,
        seed=seed,
        model=ClassifierShape() if kind == "explicit" else EquilibriumShape(),
        noise=0.0,
        max_train_steps=config.max_train_steps,
        gradient="phantom" if kind == "equilibrium-phantom" else "window",
    )
    training = ClassifierTraining(settings, images.images)
    model, adamw = training.model, training.updates.optimizers["optimizer"]
    curve, every = [], -(-config.max_train_steps // config.points)
    for step in range(config.max_train_steps):
        rate = adamw.param_groups[0]["lr"]
        training(step)
        with torch.no_grad():
            model.classes.weight.mul_(1 - rate * cell.decay)
        if (step + 1) % every == 0 or step + 1 == config.max_train_steps:
            curve.append({"step": step + 1, **look(model, images, held_out)})
    terminal = [i for i, point in enumerate(curve) if point["training_accuracy"] < 1]
    after = terminal[-1] + 1 if terminal else 0
    return {
        "cell": cell.name,
        **cell._asdict(),
        "kind": kind,
        "seed": seed,
        "majority": images.majority,
        "training_images": len(images.images.labels),
        "parameters": count_parameters(model),
        # From here on no training image is misnamed; None if that was never so.
        "terminal_step": curve[after]["step"] if after < len(curve) else None,
        "curve": curve,
    }


@torch.no_grad()
def look(model: ImageClassifier, data: Unequal, held_out: Labelled) -> dict[str, float | None]:
    """Return the figures of a network as it is now.

    Collapse is that of the training images. Residuals are those of the solves that made their
    features; None for an explicit network.
    """
    model.eval()
    (images, labels), weight = data.images, model.classes.weight
    found: dict[str, float | None] = {}
    features, residual = features_of(model, images)
    logits = model.classes(features)
    found["loss"] = float(F.cross_entropy(logits, labels))
    found["training_accuracy"] = float((logits.argmax(1) == labels).double().mean())
    named = model.classes(features_of(model, held_out.images)[0]).argmax(1)
    right = (named == held_out.labels).double()
    found["accuracy"] = float(right.mean())
    found |= asdict(neural_collapse(features, labels, weight))
    if data.minority:
        few = torch.isin(held_out.labels, torch.tensor(data.minority))
        found["majority_accuracy"] = float(right[~few].mean())
        found["minority_accuracy"] = float(right[few].mean())
        means, _ = class_means(features, labels, len(weight))
        found["minority_cosine"] = mean_cosine(weight, data.minority)
        found["minority_mean_cosine"] = mean_cosine(means - means.mean(0), data.minority)
    if residual is not None:
        found["residual"] = float(residual[:, 0].median())
        found["highest_residual"] = float(residual[:, 0].max())
        found["evaluations"] = float(residual[:, 1].mean())
        found["converged"] = float((residual[:, 2] == int(Outcome.CONVERGED)).double().mean())
    model.train()
    return found


def features_of(model: ImageClassifier, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return features, and residual, evaluations and outcome of each solve."""
    features, solves = [], []
    for part in images.split(BATCH):
        if isinstance(model, EquilibriumClassifier):
            solution = model.solve(part)
            features.append(model.features_of(solution.z))
            each = (solution.residual, solution.evaluations, solution.outcome)
            solves.append(torch.stack([x.double() for x in each], dim=1))
        else:
            features.append(model.features(part))
    return torch.cat(features), torch.cat(solves) if solves else None
