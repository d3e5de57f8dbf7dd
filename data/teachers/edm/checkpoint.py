"""Opens a teacher from a checkpoint of NVlabs EDM, and writes such a checkpoint as a folder.

A checkpoint comes as NVlabs' `*.pkl` (pickle_reader.py reads it) or as the folder that
`python -m pipeline.convert edm` writes: `edm.json` and `model.safetensors`. Both make the same
teacher with the same fingerprint.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.teachers.edm.networks import DhariwalConfig, DhariwalUNet, SongConfig, SongUNet
from data.teachers.edm.pickle_reader import Checkpoint, Number, read_pickle
from data.teachers.edm.precondition import EdmPrecond, Precond, VePrecond, VpPrecond
from data.teachers.heun import EdmHeun
from data.teachers.ode import choose_sampler
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher, fingerprint, refuse_guidance
from get.errors import InputError

Network = SongUNet | DhariwalUNet
FORMAT = 1  # of edm.json
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # of EDM's sampler, whatever the network

WRAPPERS: dict[str, tuple[type[Precond], str]] = {  # and the network where none is named
    "EDMPrecond": (EdmPrecond, "DhariwalUNet"),
    "VPPrecond": (VpPrecond, "SongUNet"),
    "VEPrecond": (VePrecond, "SongUNet"),
}
NETWORKS: dict[str, tuple[type, type]] = {
    "SongUNet": (SongUNet, SongConfig),
    "DhariwalUNet": (DhariwalUNet, DhariwalConfig),
}
RECORDED = (  # numbers that a checkpoint keeps in its modules: another value is another network
    *("num_heads", "skip_scale", "adaptive_scale", "num_groups", "eps"),
    *("up", "down", "fused_resample", "endpoint"),
)


def open_checkpoint(
    path: Path,
    sampler: Sampler,
    device: torch.device | str,
    execution: Execution = Execution(),  # noqa: B008  frozen
) -> Teacher:
    """Open a teacher from NVlabs' `.pkl` or a converted folder; see `open_teacher`.

    The noise levels go from 80 to 0.002, or as far as the network's own range allows.
    """
    checkpoint, precond, network = load(path)
    low, high = max(SIGMA_MIN, precond.sigma_min), min(SIGMA_MAX, precond.sigma_max)
    if not low < high:
        raise InputError(f"expected noise levels to sample at, got {low} to {high} in {path}")
    refuse_guidance(sampler, f"{checkpoint.wrapper} in {path}")
    levels = {"precond": precond, "sigma_min": low, "sigma_max": high, "rho": RHO}
    ode = choose_sampler(checkpoint.wrapper, levels, sampler, str(path))
    # Heun's method has no name here: it was once the only one.
    name = {} if isinstance(ode, EdmHeun) else {"name": sampler.name}
    config = network.config
    settings = {
        "class": checkpoint.wrapper,
        "precond": asdict(precond),
        "network": type(network).__name__,
        "config": asdict(config),
        "sampler": {"steps": sampler.steps, "sigma": [low, high], "rho": RHO, **name},
        **execution.settings(),
    }
    return Teacher(
        network=network.to(device),
        call=partial(_call, classes=config.label_dim),
        ode=ode,
        image_shape=(config.img_channels, config.img_resolution, config.img_resolution),
        num_classes=config.label_dim or None,
        fingerprint=fingerprint(settings, checkpoint.state),
        sampler=sampler,
        execution=execution,
    )


def _call(
    network: nn.Module, x: Tensor, time: Tensor, labels: Tensor | None, *, classes: int
) -> Tensor:
    return network(x, time, None if labels is None else F.one_hot(labels, classes).to(x.dtype))


# ------------------------------------------------------------------ from a checkpoint to a network


def build(checkpoint: Checkpoint) -> tuple[Precond, Network]:
    """Return a checkpoint's preconditioning and raw network, checked against what it records."""
    if checkpoint.wrapper not in WRAPPERS:
        known = ", ".join(WRAPPERS)
        raise InputError(f"expected a checkpoint of {known}, got one of {checkpoint.wrapper}")
    precond_kind, default = WRAPPERS[checkpoint.wrapper]
    arguments = dict(checkpoint.arguments)
    arguments.pop("use_fp16", None)  # a matter of speed on the trainer's GPU
    model_type = arguments.pop("model_type", default)
    if not isinstance(model_type, str) or model_type not in NETWORKS:
        raise InputError(f"expected model_type {' or '.join(NETWORKS)}, got {model_type}")
    network_kind, config_kind = NETWORKS[model_type]
    own = {f.name: arguments.pop(f.name) for f in fields(precond_kind) if f.name in arguments}
    precond = precond_kind(**_typed(precond_kind, own))
    with torch.device("meta"):
        network = network_kind(config_kind(**_typed(config_kind, arguments)))
    _check_attributes(checkpoint.attributes, precond, network)
    _check_tensors(checkpoint.state, {f"model.{k}": v for k, v in network.state_dict().items()})
    # Copied: how a file's tensors lie in memory would otherwise decide the last bits of an image.
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    network.load_state_dict({k.removeprefix("model."): v for k, v in checkpoint.state.items()})
    return precond, network


def _typed(kind: type[Precond | SongConfig | DhariwalConfig], given: dict) -> dict[str, Any]:
    """Return plain values as the types of dataclass `kind`, names and types checked."""
    types = {f.name: f.type for f in fields(kind)}
    if unknown := given.keys() - types.keys():
        names = ", ".join(sorted(unknown))
        raise InputError(f"expected arguments among {', '.join(types)}, got {names}")
    if missing := {"img_resolution", "img_channels"} & types.keys() - given.keys():
        raise InputError(f"expected arguments {', '.join(sorted(missing))}, got none of that name")
    for name, value in given.items():
        if _as(types[name], value) is None:
            raise InputError(f"expected {name} as {types[name]}, got {value!r}")
    return {name: _as(types[name], value) for name, value in given.items()}


def _as(kind: Any, value: Any) -> Any:
    """Return a value as the type of a dataclass field, None if it is not of that type."""
    if get_origin(kind) is tuple:
        fits = isinstance(value, list) and all(type(v) is int for v in value)
        return tuple(value) if fits else None
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else None


def _check_attributes(recorded: Mapping[str, Number], precond: Precond, network: Network) -> None:
    """Refuse a network whose modules record other constants than ours have."""
    ours: dict[str, Number] = asdict(precond)
    for name in ("img_resolution", "img_channels", "label_dim"):
        ours[name] = getattr(network.config, name)
    for path, module in network.named_modules(prefix="model"):
        ours |= {f"{path}.{n}": getattr(module, n) for n in RECORDED if hasattr(module, n)}
    for name, value in ours.items():
        if name in recorded and not math.isclose(recorded[name], value, rel_tol=1e-6):
            raise InputError(f"expected {name} = {value}, got {recorded[name]}")


def _check_tensors(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Refuse tensors that our network lacks, and others of another type or shape than ours."""
    for name in sorted(state.keys() | ours.keys()):
        expected, got = _layout(ours.get(name)), _layout(state.get(name))
        if expected != got:
            raise InputError(f"expected tensor {name}: {expected}, got {got}")


def _layout(t: Tensor | None) -> str:
    return "none" if t is None else f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


# ------------------------------------------------------------------ files


def load(path: Path) -> tuple[Checkpoint, Precond, Network]:
    """Return what a `.pkl` or a converted folder holds, its preconditioning and its network."""
    checkpoint = _read_folder(path) if path.is_dir() else read_pickle(path)
    try:
        return checkpoint, *build(checkpoint)
    except InputError as error:
        raise InputError(f"{error} in {path}; the file is damaged or not of NVlabs EDM") from error


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `edm.json` and `model.safetensors` into an existing folder."""
    description = {"format": FORMAT, "class": checkpoint.wrapper, "arguments": checkpoint.arguments}
    (folder / "edm.json").write_text(json.dumps(description, indent=2) + "\n")
    # Copies, because safetensors refuses tensors that share a storage.
    copies = {
        k: v.clone(memory_format=torch.contiguous_format) for k, v in checkpoint.state.items()
    }
    save_file(copies, folder / "model.safetensors", {"format": "pt"})


def _read_folder(folder: Path) -> Checkpoint:
    try:
        description = json.loads((folder / "edm.json").read_text())
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"expected edm.json and model.safetensors of an EDM checkpoint in {folder}, got "
            f"{type(error).__name__}; convert the checkpoint again"
        ) from error
    match description:
        case {"format": n, "class": str(wrapper), "arguments": dict(given)} if n == FORMAT:
            return Checkpoint(wrapper, given, state)
    raise InputError(
        f"expected a converted EDM checkpoint of format {FORMAT} in {folder}, got another"
    )
