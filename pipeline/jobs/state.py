"""What a training step changes, in a folder: raw and averaged weights, the optimisers' moments.

    model.safetensors       raw weights
    ema.safetensors         their average
    optimizer.safetensors   AdamW: `<index>.<name>`, step, exp_avg, exp_avg_sq of a parameter
    muon.safetensors        Muon, where it is used: `<index>.mean`

checkpoints.py keeps all this in `state/` of a checkpoint, convert_get.py beside an imported model
(the last one if it came along), and `start_from` begins a new run with either.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from get.errors import InputError
from get.models import GET, ViT
from get.muon import Muon
from pipeline.jobs.students import load_student

Moments = Mapping[int, Mapping[str, Tensor]]
ADAMW, MUON = {"step", "exp_avg", "exp_avg_sq"}, {"mean"}
POLICIES = ("iterations", "z0", "map", "select")  # settings that have no weights


def save_moments(path: Path, moments: Moments) -> None:
    """Write an optimiser's state by number of the parameter."""
    tensors = {
        f"{index}.{name}": value
        for index, values in moments.items()
        for name, value in values.items()
    }
    save_file(tensors, path)


def load_moments(path: Path) -> dict[int, dict[str, Tensor]]:
    """Read what `save_moments` wrote.

    Raises:
        OSError, SafetensorError, ValueError: If it is not there or damaged.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    return moments


def start_from(
    folder: Path,
    student: GET | ViT,
    average: GET | ViT,
    optimizers: Mapping[str, Optimizer],
) -> str:
    """Give a new training the weights, their average and the moments of an old one.

    Where the folder has no `state/`, as the result of a run, its model is both the weights and
    their average, and the moments are new.

    Args:
        folder: What `load_student` reads, with `state/` or without.
        student: Gets the raw weights.
        average: Gets the averaged weights.
        optimizers: Get the moments if they are the same ones; their settings stay their own.

    Returns:
        A line about what was taken over.

    Raises:
        InputError: If there is no model, a damaged one or one of another shape.
    """
    found = load_student(folder, torch.device("cpu"))
    _compare_shapes(folder, found, student)
    state = folder / "state"
    try:
        if not state.is_dir():
            student.load_state_dict(found.state_dict())
            average.load_state_dict(found.state_dict())
            taken = "weights"
        else:
            student.load_state_dict(load_file(state / "model.safetensors"))
            average.load_state_dict(load_file(state / "ema.safetensors"))
            taken = "weights and their average"
            stored = {path.stem for path in state.glob("*.safetensors")} - {"model", "ema"}
            if stored == optimizers.keys():
                for name, optimizer in optimizers.items():
                    _take_moments(load_moments(state / f"{name}.safetensors"), optimizer)
                taken += " and the optimiser's moments"
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected the state of a training in {state}, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; convert it again, or delete {state} to start from "
            "the model alone"
        ) from error
    return f"starting from the {taken} in {folder}{_other_policies(found, student)}"


def _compare_shapes(folder: Path, found: GET | ViT, student: GET | ViT) -> None:
    """Raise InputError unless the weights of one fit the other."""
    different = [
        f"{name} {found.config.get(name)} instead of {value}"
        for name, value in student.config.items()
        if not name.startswith("_") and name not in POLICIES and found.config.get(name) != value
    ]
    if type(found) is not type(student):
        different = [f"a {type(found).__name__}"]
    if different:
        raise InputError(
            f"expected a {type(student).__name__} of this run's shape in {folder}, got "
            f"{', '.join(different)}; set --model.* to its shape, or choose other pairs"
        )


def _other_policies(found: GET | ViT, student: GET | ViT) -> str:
    """Return a remark if the same weights mean another function from here on."""
    different = [
        f"{name} was {found.config[name]}, is {student.config[name]}"
        for name in ("z0", "map")
        if found.config.get(name) != student.config.get(name)
    ]
    return f" ({'; '.join(different)})" if different else ""


def fit(moments: Moments, parameters: Sequence[Tensor], names: Collection[str] = ADAMW) -> bool:
    """Say whether these are moments of all these parameters, by these names."""
    return moments.keys() == set(range(len(parameters))) and all(
        values.keys() == set(names)
        and all(v.shape == (() if n == "step" else parameters[i].shape) for n, v in values.items())
        for i, values in moments.items()
    )


def _take_moments(moments: Moments, optimizer: Optimizer) -> None:
    """Put moments into an optimiser, whose own settings stay."""
    names = MUON if isinstance(optimizer, Muon) else ADAMW
    if not fit(moments, [p for group in optimizer.param_groups for p in group["params"]], names):
        raise ValueError("moments of other parameters")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
