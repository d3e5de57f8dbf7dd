"""Load what train_equilibrium_classifier.py makes."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from data.files import read_json
from get.errors import InputError
from get.models.image_classifier import (
    EquilibriumClassifier,
    ExplicitClassifier,
    ImageClassifier,
)

KINDS = {kind.__name__: kind for kind in (EquilibriumClassifier, ExplicitClassifier)}


def load_image_classifier(folder: Path, device: torch.device) -> ImageClassifier:
    """Load an image classifier, equilibrium or explicit, for evaluation.

    Raises:
        InputError: If there is none.
    """
    path = folder / "config.json"
    kind = KINDS.get(str(read_json(path).get("_class_name"))) if path.exists() else None
    if kind is None:
        raise InputError(
            f"expected an image classifier in {folder}, got none; make one with "
            "pipeline/train_equilibrium_classifier.py"
        )
    try:
        model = kind.from_pretrained(folder, use_safetensors=True)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected a readable image classifier in {folder}, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    model.to(device)  # pyrefly: ignore[bad-argument-type]  diffusers wraps it
    return model.eval()
