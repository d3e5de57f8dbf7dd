"""Opens a teacher in diffusers format, from a folder or the hub.

`model_index.json` names the parts: `unet/` (UNet2DModel) or `transformer/` (DiT), `scheduler/`
(`ode.py` lists those that serve) and, if the network works on latents, `vae/`, which is not run
here: the pairs are latents, and the student's pipeline decodes.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from data.teachers.hub import fetch
from data.teachers.ode import Scheduled, choose_sampler
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher, fingerprint, refuse_guidance
from get.errors import InputError

Model = TypeVar("Model", bound=ModelMixin)
Network = UNet2DModel | DiTTransformer2DModel
NETWORKS: dict[tuple[str, str], type[Network]] = {
    ("unet", "UNet2DModel"): UNet2DModel,
    ("transformer", "DiTTransformer2DModel"): DiTTransformer2DModel,
    ("transformer", "Transformer2DModel"): DiTTransformer2DModel,  # its name in facebook/DiT-*
}


def open_folder(
    source: Path | str, sampler: Sampler, device: torch.device | str, execution: Execution
) -> Teacher:
    """Open a teacher in diffusers format; see `open_teacher`."""
    folder = fetch(source, ("unet", "transformer"))
    parts = _parts(folder)
    config = _json(_home(folder, "scheduler") / "scheduler_config.json")
    ode = choose_sampler(parts.get("scheduler"), config, sampler, str(folder))
    if "vae" in parts:  # say now, and not when a student is trained, that it is missing
        _json(_home(folder, "vae") / "config.json")
    name = next(k for k, v in parts.items() if (k, v) in NETWORKS)
    network = _load(NETWORKS[name, parts[name]], folder, name, device)
    if not isinstance(network, DiTTransformer2DModel):
        refuse_guidance(sampler, f"{type(network).__name__} in {folder}")
    settings = {**network.config, **config, **sampler.settings(), **execution.settings()}
    if isinstance(ode, Scheduled):  # EDM's sampler has no entry: it was once the only one
        settings["solver"] = ode.kind.__name__
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    return Teacher(
        network=network,
        call=_call,
        ode=ode,
        image_shape=_image_shape(network, folder),
        num_classes=_num_classes(network, folder),
        fingerprint=fingerprint(public, network.state_dict()),
        sampler=sampler,
        execution=execution,
        vae_source=str(source) if "vae" in parts else None,
    )


def _call(network: nn.Module, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    return network(x, time, class_labels=labels).sample


def load_vae(source: str) -> AutoencoderKL:
    """Load the VAE that decodes latents, `vae` of their manifest; InputError if there is none."""
    return _load(AutoencoderKL, fetch(source, ("vae",)), "vae", "cpu")


def _parts(folder: Path) -> dict[str, str]:
    """Return the class of every part; refuse parts without which the pairs would be wrong."""
    index = _json(folder / "model_index.json")
    lists = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2}
    parts = {k: v[1] for k, v in lists.items() if v[1] is not None}
    networks = parts.items() & NETWORKS.keys()
    others = {k: v for k, v in parts.items() - networks if k != "scheduler"}
    if len(networks) != 1 or others not in ({}, {"vae": "AutoencoderKL"}):
        listed = ", ".join(f"{k} {v}" for k, v in parts.items()) or "nothing"
        raise InputError(
            f"expected one UNet2DModel or DiTTransformer2DModel in {folder}, a scheduler and at "
            f"most an AutoencoderKL besides, got {listed}; such teachers are not supported"
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
