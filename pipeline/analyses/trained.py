"""Classifiers trained on the same images as the kernels, for comparison."""

from collections.abc import Callable
from typing import Any

from data.real import Labelled
from get.cost import count_parameters
from pipeline.analyses.settings import NngpConfig
from pipeline.recipes.settings_classify import (
    ClassifierShape,
    EquilibriumShape,
    ImageClassifierConfig,
)
from pipeline.training.classify import accuracy_of, training_of

NOISES = (0.0, 0.5)  # on training images; certified smoothing wants the second


def trained(
    config: NngpConfig, training: Labelled, held_out: Labelled, done: Callable[[], Any]
) -> list[dict[str, Any]]:
    """Train an equilibrium classifier and its explicit twin, with and without noise on images."""
    rows = []
    for kind, shape in (("equilibrium", EquilibriumShape()), ("explicit", ClassifierShape())):
        for noise in NOISES:
            settings = ImageClassifierConfig(
                output_dir=config.output_dir,
                seed=config.seed,
                model=shape,
                noise=noise,
                max_train_steps=config.classifier_steps,
            )
            *_, last = training_of(settings, training, every=config.classifier_steps)
            rows.append(
                {
                    "kind": kind,
                    "noise": noise,
                    "steps": config.classifier_steps,
                    "parameters": count_parameters(last.average),
                    "training_accuracy": accuracy_of(last.average, training),
                    "accuracy": accuracy_of(last.average, held_out),
                }
            )
            done()
    return rows
