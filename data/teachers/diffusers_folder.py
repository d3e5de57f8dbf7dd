"""A teacher in a diffusers folder: `model_index.json`, `unet/`, `scheduler/`.

The scheduler's class says the parametrisation: `EDMEulerScheduler` means EDM preconditioning and
carries sigma_data, sigma_min, sigma_max and rho. The sampler is EDM's deterministic Heun.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor

from data.samplers import heun, karras_sigmas
from data.teachers.edm import edm_denoise
from get.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Settings of the deterministic sampler.

    Attributes:
        steps: Noise levels; Heun spends 2 * steps - 1 network evaluations.
    """

    steps: int = 18

    def __post_init__(self) -> None:
        """Refuse a sampler without steps."""
        if self.steps < 2:
            raise InputError(f"expected at least 2 sampler steps, got {self.steps}")


class DiffusersTeacher:
    """Noise (and label) to image, deterministic.

    Attributes:
        image_shape: Channels, height, width.
        num_classes: Number of classes; None if unconditional.
        evaluations: Network evaluations an image.
        sampler: The sampler's settings.
        fingerprint: SHA-256 of weights, configuration and sampler settings.
        unet: The raw network.
    """

    def __init__(self, folder: Path | str, sampler: Sampler, device: torch.device | str) -> None:
        """Load a teacher.

        Raises:
            InputError: If the folder is not a teacher this class can use.
        """
        folder = Path(folder)
        index = _json(folder / "model_index.json")
        classes = {k: v[1] for k, v in index.items() if isinstance(v, list) and len(v) == 2}
        unet_class, scheduler_class = classes.get("unet"), classes.get("scheduler")
        if unet_class != "UNet2DModel" or scheduler_class != "EDMEulerScheduler":
            raise InputError(
                f"expected a UNet2DModel and an EDMEulerScheduler in {folder}, "
                f"got {unet_class} and {scheduler_class}; other teachers are not supported yet"
            )
        scheduler = _json(folder / "scheduler" / "scheduler_config.json")
        settings = {"sigma_data", "sigma_min", "sigma_max", "rho"}
        if scheduler.get("prediction_type") != "epsilon" or not settings <= scheduler.keys():
            raise InputError(
                f"expected prediction_type epsilon, {', '.join(sorted(settings))} in "
                f"{folder / 'scheduler'}, got {scheduler}; other teachers are not supported yet"
            )
        try:
            unet = UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
            self.unet: UNet2DModel = unet.eval().requires_grad_(False)
            self.unet.to(device)  # pyrefly: ignore[bad-argument-type]  diffusers wraps it
        except (OSError, ValueError, NotImplementedError) as error:  # the last: a missing tensor
            raise InputError(
                f"expected config.json and matching weights in {folder / 'unet'}, "
                f"got {type(error).__name__}; copy or train the teacher again"
            ) from error
        size = unet.config["sample_size"]
        self.image_shape = (unet.config["in_channels"], size, size)
        self.num_classes: int | None = unet.config["num_class_embeds"]
        self.sampler = sampler
        self.evaluations = 2 * sampler.steps - 1
        self.sigma_data: float = scheduler["sigma_data"]
        self.sigmas = karras_sigmas(
            sampler.steps, scheduler["sigma_min"], scheduler["sigma_max"], scheduler["rho"]
        )
        self.fingerprint = _fingerprint(unet, {**unet.config, **scheduler, **asdict(sampler)})

    def __call__(
        self,
        noise: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images, nominally in [-1, 1], not clipped, of unit normal noise."""
        device = self.unet.device
        labels = None if labels is None else labels.to(device)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return edm_denoise(self.unet, x, sigma, labels, self.sigma_data).to(torch.float64)

        return heun(denoise, noise.to(device), self.sigmas).float()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"expected a teacher in diffusers format in {path.parent}, got {type(error).__name__} "
            f"at {path.name}; give such a folder, or make one with train_teacher.py"
        ) from error


def _fingerprint(unet: UNet2DModel, settings: dict) -> str:
    public = {k: v for k, v in settings.items() if not k.startswith("_")}
    digest = hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode())
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
