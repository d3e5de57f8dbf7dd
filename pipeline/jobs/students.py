"""Load what train.py makes: the model of a run or a checkpoint, or any folder like these."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from get.errors import InputError
from get.models import Student
from get.pipeline_get import GETPipeline


def load_student(folder: Path, device: torch.device) -> Student:
    """Load the model of a distilled pipeline; see `load_pipeline`."""
    return load_pipeline(folder, device).model


def load_pipeline(folder: Path, device: torch.device) -> GETPipeline:
    """Load a distilled model, with its VAE if it makes latents.

    Raises:
        InputError: If the folder is missing, unfinished or unreadable.
    """
    if not (folder / "model_index.json").exists():
        checkpoints = sorted(p.name for p in folder.glob("checkpoints/checkpoint-*"))
        hint = f"its checkpoints are {', '.join(checkpoints)}" if checkpoints else "train one first"
        raise InputError(f"expected a model (model_index.json) in {folder}, got none; {hint}")
    try:
        pipeline = GETPipeline.from_pretrained(folder, use_safetensors=True)
    except InputError:
        raise
    except (OSError, SafetensorError, json.JSONDecodeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected a readable model in {folder}, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    pipeline.to(device)
    pipeline.model.eval()
    return pipeline


def weights_hash(folder: Path, part: str = "model") -> str:
    """Return the SHA-256 of a model's configuration and weights, which names it in measurements."""
    digest = hashlib.sha256()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        digest.update((folder / part / name).read_bytes())
    return digest.hexdigest()
