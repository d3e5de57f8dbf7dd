"""Teachers from NVlabs EDM checkpoints: loading, checking, sampling, our own folder.

A checkpoint comes as NVlabs' `*.pkl` (edm_pickle.py reads it) or as the folder that
`python -m pipeline.convert edm` writes: `edm.json` and `model.safetensors`. Both make the same
teacher with the same fingerprint.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.teachers.edm.networks import DhariwalConfig, DhariwalUNet, SongConfig, SongUNet
from data.teachers.edm.pickle_reader import Checkpoint, Number, read_pickle
from data.teachers.edm.precond import EdmPrecond, Precond, VePrecond, VpPrecond
from data.teachers.heun import heun, karras_sigmas
from data.teachers.settings import Sampler
from get.errors import InputError

FORMAT = 1  # of edm.json
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # of EDM's sampler, whatever the network


WRAPPERS: dict[str, tuple[type[Precond], str]] = {  # and the network where none is named
    "EDMPrecond": (EdmPrecond, "DhariwalUNet"),
    "VPPrecond": (VpPrecond, "SongUNet"),
    "VEPrecond": (VePrecond, "SongUNet"),
}
NETWORKS = {"SongUNet": SongConfig, "DhariwalUNet": DhariwalConfig}
NOTED = (  # numbers that a checkpoint notes in its modules: another one means another network
    *("num_heads", "skip_scale", "adaptive_scale", "num_groups", "eps"),
    *("up", "down", "fused_resample", "endpoint"),
)


class Denoiser(nn.Module):
    """The denoiser D: a raw network within its preconditioning, in float32.

    Attributes:
        precond: The preconditioning.
        model: The raw network.
    """

    def __init__(self, precond: Precond, config: SongConfig | DhariwalConfig) -> None:
        """Make the denoiser, its parameters zero."""
        super().__init__()
        self.precond, self.config = precond, config
        self.model = SongUNet(config) if isinstance(config, SongConfig) else DhariwalUNet(config)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        sigma: Float[Tensor, "*levels"],
        labels: Int[Tensor, " batch"] | None,
        augment_labels: Float[Tensor, "batch augment_dim"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 D(x, sigma).

        Args:
            x: Noisy images.
            sigma: Noise level, one for all (0-d) or one a sample.
            labels: Class indices; None is no class. An unconditional network ignores them.
            augment_labels: What augmentation was applied; None is none.
        """
        x = x.to(torch.float32)
        levels = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, c_noise = self.precond.scalings(levels)
        out = self.model(c_in * x, c_noise.flatten(), self._one_hot(x, labels), augment_labels)
        return c_skip * x + c_out * out

    def _one_hot(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        if not self.config.label_dim:
            return None
        if labels is None:
            return torch.zeros(len(x), self.config.label_dim, device=x.device)
        return F.one_hot(labels, self.config.label_dim).to(torch.float32)


# ------------------------------------------------------------------ from a checkpoint to a network


def build(checkpoint: Checkpoint) -> Denoiser:
    """Return the denoiser of a checkpoint, checked against what the checkpoint notes.

    Raises:
        InputError: If it is of no known class or its parts contradict each other.
    """
    if checkpoint.wrapper not in WRAPPERS:
        known = ", ".join(WRAPPERS)
        raise InputError(f"expected a checkpoint of {known}, got one of {checkpoint.wrapper}")
    kind, default = WRAPPERS[checkpoint.wrapper]
    given = dict(checkpoint.arguments)
    given.pop("use_fp16", None)  # a matter of speed on the trainer's GPU
    model_type = given.pop("model_type", default)
    if not isinstance(model_type, str) or model_type not in NETWORKS:
        raise InputError(f"expected model_type {' or '.join(NETWORKS)}, got {model_type}")
    own = {f.name: given.pop(f.name) for f in fields(kind) if f.name in given}
    precond, config_kind = kind(**_typed(kind, own)), NETWORKS[model_type]
    config = config_kind(**_typed(config_kind, given))
    with torch.device("meta"):
        denoiser = Denoiser(precond, config)
    _check_attributes(checkpoint.attributes, denoiser)
    _check_tensors(checkpoint.state, denoiser.state_dict())
    # Copied: how a file's tensors lie in memory would otherwise decide the last bits of an image.
    denoiser = denoiser.to_empty(device="cpu").eval().requires_grad_(False)
    denoiser.load_state_dict(checkpoint.state)
    return denoiser


def _typed(kind: type[Precond | SongConfig | DhariwalConfig], given: dict) -> dict[str, Any]:
    """Return plain values as the dataclass `kind` wants them, their names and types checked."""
    wanted = {f.name: f.type for f in fields(kind)}
    if unknown := given.keys() - wanted.keys():
        names = ", ".join(sorted(unknown))
        raise InputError(f"expected arguments among {', '.join(wanted)}, got {names}")
    if missing := {"img_resolution", "img_channels"} & wanted.keys() - given.keys():
        raise InputError(f"expected arguments {', '.join(sorted(missing))}, got none of that name")
    typed = {name: _as(wanted[name], value) for name, value in given.items()}
    for name, value in typed.items():
        if value is None:
            raise InputError(f"expected {name} as {wanted[name]}, got {given[name]!r}")
    return typed


def _as(wanted: Any, value: Any) -> Any:
    """Return a value as the type of a dataclass field, None if it is none of that type."""
    if get_origin(wanted) is tuple:
        fits = isinstance(value, list) and all(type(v) is int for v in value)
        return tuple(value) if fits else None
    if get_origin(wanted) is Literal:
        return value if value in get_args(wanted) else None
    if wanted is float and type(value) is int:
        return float(value)
    return value if type(value) is wanted else None


def _check_attributes(noted: Mapping[str, Number], denoiser: Denoiser) -> None:
    """Refuse a network whose modules note other constants than ours have."""
    ours: dict[str, Number] = asdict(denoiser.precond)
    for name in ("img_resolution", "img_channels", "label_dim"):
        ours[name] = getattr(denoiser.config, name)
    for path, module in denoiser.model.named_modules(prefix="model"):
        ours |= {f"{path}.{n}": getattr(module, n) for n in NOTED if hasattr(module, n)}
    for name, value in ours.items():
        if name in noted and not math.isclose(noted[name], value, rel_tol=1e-6):
            raise InputError(f"expected {name} = {value}, got {noted[name]}")


def _check_tensors(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    for name in sorted(found.keys() | ours.keys()):
        kinds = [
            f"{str(t[name].dtype).removeprefix('torch.')} {list(t[name].shape)}"
            if name in t
            else "none"
            for t in (ours, found)
        ]
        if kinds[0] != kinds[1]:
            raise InputError(f"expected tensor {name}: {kinds[0]}, got {kinds[1]}")


# ------------------------------------------------------------------ files


def load(path: Path) -> tuple[Checkpoint, Denoiser]:
    """Return what a `.pkl` or a converted folder holds, and the denoiser of it.

    Raises:
        InputError: If it is neither, or not whole, or of a network unknown here.
    """
    checkpoint = _read_folder(path) if path.is_dir() else read_pickle(path)
    try:
        return checkpoint, build(checkpoint)
    except InputError as error:
        raise InputError(f"{error} in {path}; the file is damaged or not of NVlabs EDM") from error


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `edm.json` and `model.safetensors` into a folder that is there."""
    description = {
        "format": FORMAT,
        "class": checkpoint.wrapper,
        "arguments": checkpoint.arguments,
    }
    (folder / "edm.json").write_text(json.dumps(description, indent=2) + "\n")
    # Copies: tensors of one storage are not for safetensors.
    whole = {k: v.clone(memory_format=torch.contiguous_format) for k, v in checkpoint.state.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})


def _read_folder(folder: Path) -> Checkpoint:
    try:
        description = json.loads((folder / "edm.json").read_text())
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"expected edm.json and model.safetensors in {folder}, got {type(error).__name__}; "
            "convert the checkpoint again"
        ) from error
    match description:
        case {"format": version, "class": str(wrapper), "arguments": dict(arguments)} if (
            version == FORMAT
        ):
            return Checkpoint(wrapper, arguments, state)
    raise InputError(
        f"expected a converted EDM checkpoint of format {FORMAT} in {folder}, got another"
    )


# ------------------------------------------------------------------ the teacher


class EdmTeacher:
    """Noise (and label) to image by EDM's deterministic Heun sampler, its state in float64.

    The noise levels go from 80 to 0.002, or as far as the network's own range allows.

    Attributes:
        image_shape: Channels, height, width.
        num_classes: Number of classes; None if unconditional.
        evaluations: Network evaluations an image.
        sampler: The sampler's settings.
        fingerprint: SHA-256 of weights, configuration and sampler settings.
        denoiser: The network within its preconditioning.
        network: The raw network.
    """

    def __init__(self, path: Path, sampler: Sampler, device: torch.device | str) -> None:
        """Load a teacher from NVlabs' `.pkl` or a converted folder.

        Raises:
            InputError: If the path holds no such teacher or the sampler is not EDM's.
        """
        _check_sampler(sampler)
        checkpoint, denoiser = load(path)
        config, precond = denoiser.config, denoiser.precond
        low, high = max(SIGMA_MIN, precond.sigma_min), min(SIGMA_MAX, precond.sigma_max)
        if not low < high:
            raise InputError(f"expected noise levels to sample at, got {low} to {high} in {path}")
        self.image_shape = (config.img_channels, config.img_resolution, config.img_resolution)
        self.num_classes: int | None = config.label_dim or None
        self.sampler = sampler
        self.evaluations = 2 * sampler.steps - 1
        self.sigmas = karras_sigmas(sampler.steps, low, high, RHO)
        settings = {
            "class": checkpoint.wrapper,
            "precond": asdict(precond),
            "network": type(denoiser.model).__name__,
            "config": asdict(config),
            "sampler": {"steps": sampler.steps, "sigma": [low, high], "rho": RHO},
        }
        self.fingerprint = _fingerprint(denoiser, settings)
        self.denoiser = denoiser.to(device)
        self.network = self.denoiser.model

    def __call__(
        self,
        noise: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images, nominally in [-1, 1], not clipped, of unit normal noise."""
        device = next(self.denoiser.parameters()).device
        labels = None if labels is None else labels.to(device)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.denoiser(x, sigma, labels).to(torch.float64)

        return heun(denoise, noise.to(device), self.sigmas).float()


def _check_sampler(sampler: Sampler) -> None:
    if sampler.name not in ("auto", "heun"):
        raise InputError(
            f"expected sampler auto or heun for an EDM checkpoint, got {sampler.name}; "
            "no other is offered for it"
        )
    if sampler.guidance_scale != 1:
        raise InputError(
            "expected guidance_scale 1 for an EDM checkpoint, which knows no guidance, "
            f"got {sampler.guidance_scale}"
        )
    if sampler.steps < 2:
        raise InputError(
            f"expected at least 2 sampler steps for an EDM checkpoint, got {sampler.steps}"
        )


def _fingerprint(denoiser: Denoiser, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
