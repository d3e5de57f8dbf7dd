"""What a training step changes, in a folder: raw and averaged weights, the optimisers' moments.

    model.safetensors       raw weights
    ema.safetensors         their average
    ema-<width>.safetensors their power-function averages, where there are any (averages.py)
    optimizer.safetensors   AdamW: `<index>.<name>`; step, exp_avg, exp_avg_sq of each parameter
    muon.safetensors        Muon, where it is used: `<index>.mean`
    features.safetensors    averaged moments of the student's features, where they are trained on

checkpoints.py keeps all this in `state/` of a checkpoint, and convert.py next to an imported
model (the moments if the import has them). `start_from` begins a new run with either.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from get.errors import InputError
from get.models import Student
from get.muon import Muon
from pipeline.jobs.students import load_student

Moments = Mapping[int, Mapping[str, Tensor]]
ADAMW, MUON = {"step", "exp_avg", "exp_avg_sq"}, {"mean"}
# Settings of an iteration: the same weights fit any of them.
POLICIES = ("iterations", "z0", "map", "select")


def save_moments(path: Path, moments: Moments) -> None:
    """Write an optimiser's state, named by the number of the parameter."""
    tensors = {
        f"{index}.{name}": value
        for index, values in moments.items()
        for name, value in values.items()
    }
    save_file(tensors, path)


def load_moments(path: Path) -> dict[int, dict[str, Tensor]]:
    """Read what `save_moments` wrote.

    Raises:
        OSError, SafetensorError, ValueError: If it is missing or damaged.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    return moments


def start_from(
    folder: Path,
    student: Student,
    average: Student,
    optimizers: Mapping[str, Optimizer],
) -> str:
    """Start a new training from the weights, their average and the moments of an old one.

    If the folder has no `state/` (the result of a run has none), its model becomes both the
    weights and their average, and the moments start anew.

    Args:
        folder: A folder that `load_student` reads, with `state/` or without.
        student: Receives the raw weights.
        average: Receives the averaged weights.
        optimizers: Receive the moments if the old training used the same optimisers; their
            settings stay.

    Returns:
        A line that says what was loaded.

    Raises:
        InputError: If the model is missing, damaged or of another shape.
    """
    old = load_student(folder, torch.device("cpu"))
    _compare_shapes(folder, old, student)
    state = folder / "state"
    try:
        if not state.is_dir():
            student.load_state_dict(old.state_dict())
            average.load_state_dict(old.state_dict())
            loaded = "weights"
        else:
            student.load_state_dict(load_file(state / "model.safetensors"))
            average.load_state_dict(load_file(state / "ema.safetensors"))
            loaded = "weights and their average"
            others = re.compile("model|ema(-.*)?|features")
            stored = {path.stem for path in state.glob("*.safetensors")}
            if {name for name in stored if not others.fullmatch(name)} == optimizers.keys():
                for name, optimizer in optimizers.items():
                    _set_moments(load_moments(state / f"{name}.safetensors"), optimizer)
                loaded += " and the optimiser's moments"
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected the state of a training in {state}, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; convert it again, or delete {state} to start from "
            "the model alone"
        ) from error
    return f"starting from the {loaded} in {folder}{_other_policies(old, student)}"


def _compare_shapes(folder: Path, old: Student, student: Student) -> None:
    """Raise InputError unless the weights of the old model fit the new one."""
    different = [
        f"{name} {old.config.get(name)} instead of {value}"
        for name, value in student.config.items()
        if not name.startswith("_") and name not in POLICIES and old.config.get(name) != value
    ]
    if type(old) is not type(student):
        different = [f"a {type(old).__name__}"]
    if different:
        raise InputError(
            f"expected a {type(student).__name__} of this run's shape in {folder}, got "
            f"{', '.join(different)}; set --model.* to its shape, or choose other pairs"
        )


def _other_policies(old: Student, student: Student) -> str:
    """Return a remark if the same weights now make another function."""
    different = [
        f"{name} was {old.config[name]}, is {student.config[name]}"
        for name in ("z0", "map")
        if old.config.get(name) != student.config.get(name)
    ]
    return f" ({'; '.join(different)})" if different else ""


def fit(moments: Moments, parameters: Sequence[Tensor], names: Collection[str] = ADAMW) -> bool:
    """Say whether there are moments of exactly these parameters, with these names."""
    return moments.keys() == set(range(len(parameters))) and all(
        values.keys() == set(names)
        and all(v.shape == (() if n == "step" else parameters[i].shape) for n, v in values.items())
        for i, values in moments.items()
    )


def _set_moments(moments: Moments, optimizer: Optimizer) -> None:
    """Load moments into an optimiser; its settings stay."""
    names = MUON if isinstance(optimizer, Muon) else ADAMW
    if not fit(moments, [p for group in optimizer.param_groups for p in group["params"]], names):
        raise ValueError("moments of other parameters")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
