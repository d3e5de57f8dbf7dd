"""A teacher in diffusers format, from a folder or the hub: any network, any scheduler that serves.

`model_index.json` names the parts: `unet/` (UNet2DModel) or `transformer/` (DiT), `scheduler/`
(`solvers.py` says which serve and what they mean) and, where the network works on latents, `vae/`,
which is not run here: the pairs are latents, and sampling decodes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor

from data.teachers.hub import fetch
from data.teachers.ode import Scheduled, choose_solver
from data.teachers.settings import Execution, Sampler
from get.errors import InputError

Model = TypeVar("Model", bound=ModelMixin)
Network = UNet2DModel | DiTTransformer2DModel
NETWORKS: dict[tuple[str, str], type[Network]] = {
    ("unet", "UNet2DModel"): UNet2DModel,
    ("transformer", "DiTTransformer2DModel"): DiTTransformer2DModel,
    ("transformer", "Transformer2DModel"): DiTTransformer2DModel,  # its name in facebook/DiT-*
}


class DiffusersTeacher:
    """Noise (and label) to image or latent, deterministic.

    Attributes:
        image_shape: Channels, height, width.
        num_classes: Number of classes; None if unconditional.
        evaluations: Network evaluations an image.
        sampler: The sampler's settings.
        execution: Precision and speed.
        fingerprint: SHA-256 of weights, configuration, sampler and execution settings.
        network: The raw network.
        vae_source: What was loaded, if its `vae/` decodes the teacher's latents; else None.
        latent_scale: Latents are the VAE's times this; None without a VAE.
    """

    def __init__(
        self,
        source: Path | str,
        sampler: Sampler,
        device: torch.device | str,
        execution: Execution = Execution(),  # noqa: B008  frozen
    ) -> None:
        """Load a teacher.

        Args:
            source: A folder in diffusers format, or a hub id like "owner/name".
            sampler: The sampler's settings.
            device: Where the network runs.
            execution: Precision and speed.

        Raises:
            InputError: If there is no teacher that this class can use.
        """
        folder = fetch(source, ("unet", "transformer"))
        parts = _parts(folder)
        config = _json(_home(folder, "scheduler") / "scheduler_config.json")
        self.solver = choose_solver(parts.get("scheduler"), config, sampler, str(folder))
        name = next(k for k, v in parts.items() if (k, v) in NETWORKS)
        self.network = _load(NETWORKS[name, parts[name]], folder, name, device)
        self.image_shape = _image_shape(self.network, folder)
        self.num_classes = _num_classes(self.network, folder)
        self.sampler, self.execution = sampler, execution
        self._guided = sampler.guidance_scale != 1
        if self._guided and not isinstance(self.network, DiTTransformer2DModel):
            raise InputError(
                f"expected guidance_scale 1 (none) for the UNet2DModel in {folder}, got "
                f"{sampler.guidance_scale}; it has no null label to guide away from"
            )
        self.evaluations = self.solver.evaluations * (2 if self._guided else 1)
        self.vae_source = str(source) if "vae" in parts else None
        vae = _json(_home(folder, "vae") / "config.json") if "vae" in parts else {}
        self.latent_scale: float | None = vae.get("scaling_factor")
        settings = {**config, **sampler.settings(), **execution.settings()}
        if isinstance(self.solver, Scheduled):  # EDM's sampler was the only one once: no name
            settings["solver"] = self.solver.kind.__name__
        self.fingerprint = _fingerprint(self.network, settings)
        self._execute()

    def _execute(self) -> None:
        """Bring the network into the form that is run."""
        last = self.execution.memory_format == "channels_last"
        self._format = torch.channels_last if last else torch.contiguous_format
        self.network.to(memory_format=self._format)  # pyrefly: ignore[missing-argument]
        self._run = torch.compile(self.network) if self.execution.compile else self.network

    @torch.no_grad()
    def __call__(
        self,
        noise: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images, nominally in [-1, 1], not clipped, of unit normal noise.

        Raises:
            InputError: If there are labels for an unconditional teacher, or none for another.
        """
        if (labels is None) != (self.num_classes is None):
            wanted, got = ("no labels", "some") if self.num_classes is None else ("labels", "none")
            raise InputError(f"expected {wanted} for this teacher, got {got}")
        device = self.network.device
        labels = None if labels is None else labels.to(device)

        def predict(x: Tensor, time: Tensor) -> Tensor:
            if labels is None or not self._guided:
                return self._evaluate(x, time, labels)
            return self._guide(x, time, labels)

        return self.solver(predict, noise.to(device))

    def _evaluate(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's raw prediction, float32, without a learned variance behind it."""
        bf16 = self.execution.mixed_precision == "bf16"
        x = x.to(torch.float32, memory_format=self._format)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = self._run(x, time, class_labels=labels).sample
        return out[:, : x.shape[1]].float()

    def _guide(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the prediction for the label, led away from that for none (arXiv:2207.12598)."""
        none = torch.full_like(labels, self.num_classes or 0)  # the label after the last class
        both = self._evaluate(x.repeat(2, 1, 1, 1), time.repeat(2), torch.cat([labels, none]))
        labelled, unlabelled = both.chunk(2)
        return unlabelled + self.sampler.guidance_scale * (labelled - unlabelled)


def load_vae(source: str) -> AutoencoderKL:
    """Load the VAE that decodes the latents of a teacher.

    Args:
        source: `vae_source` of the teacher, `vae` of the pairs' manifest.

    Raises:
        InputError: If there is none.
    """
    return _load(AutoencoderKL, fetch(source, ("vae",)), "vae", "cpu")


def _parts(folder: Path) -> dict[str, str]:
    """Return the class of every part; refuse parts without which the pairs would be wrong."""
    index = _json(folder / "model_index.json")
    lists = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2}
    parts = {k: v[1] for k, v in lists.items() if v[1] is not None}
    networks = [part for part in parts.items() if part in NETWORKS]
    others = {k: v for k, v in parts.items() if k != "scheduler" and (k, v) not in NETWORKS}
    if len(networks) != 1 or others not in ({}, {"vae": "AutoencoderKL"}):
        found = ", ".join(f"{k} {v}" for k, v in parts.items()) or "nothing"
        raise InputError(
            f"expected one UNet2DModel or DiTTransformer2DModel in {folder}, a scheduler and at "
            f"most an AutoencoderKL besides, got {found}; such teachers are not supported"
        )
    return parts


def _home(folder: Path, part: str) -> Path:
    """Return where a part lies: repositories of 2022 keep their one network at the root."""
    return folder / part if (folder / part).is_dir() else folder


def _load(kind: type[Model], folder: Path, part: str, device: torch.device | str) -> Model:
    home = _home(folder, part)
    try:
        model = kind.from_pretrained(home, use_safetensors=True, torch_dtype=torch.float32)
        model.to(device)  # pyrefly: ignore[bad-argument-type]  diffusers wraps it
    except (OSError, ValueError, NotImplementedError) as error:  # the last: a missing tensor
        raise InputError(
            f"expected config.json and matching weights (safetensors) in {home}, got "
            f"{type(error).__name__}; copy or train them again, or name a hub revision that has "
            "them as owner/name@revision"
        ) from error
    return model.eval().requires_grad_(False)


def _image_shape(network: Network, folder: Path) -> tuple[int, int, int]:
    c = network.config
    size = c["sample_size"]
    channels, out = c["in_channels"], c["out_channels"] or c["in_channels"]
    if size is None or out not in (channels, 2 * channels):
        raise InputError(
            f"expected a network of known sample_size in {folder}, with as many output channels "
            f"as input channels or twice as many (a learned variance), got sample_size {size} "
            f"and {channels} to {out} channels"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _num_classes(network: Network, folder: Path) -> int | None:
    c = network.config
    if isinstance(network, DiTTransformer2DModel):
        return c["num_embeds_ada_norm"]
    if c["class_embed_type"] is not None:
        raise InputError(
            f"expected a network without class_embed_type in {folder}, got "
            f"{c['class_embed_type']}; labels must be class indices (num_class_embeds)"
        )
    return c["num_class_embeds"]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"expected a teacher in diffusers format in {path.parent}, got {type(error).__name__} "
            f"at {path.name}; give such a folder, or make one with train_teacher.py"
        ) from error


def _fingerprint(network: Network, settings: Mapping[str, Any]) -> str:
    public = {k: v for k, v in {**network.config, **settings}.items() if not k.startswith("_")}
    digest = hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
