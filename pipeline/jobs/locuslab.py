"""A training checkpoint of locuslab/get as our models and moments.

`pipeline/convert.py get_checkpoint` is the command. The file is read as tensors
(data/torch_file.py); nothing in it is executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.torch_file import Namespace, StoredTensor, open_torch_file
from get.errors import InputError
from get.models import GET, GET_SIZES, SIZES, VIT_SIZES, ViT, build
from get.models.locuslab import build_from, rename
from pipeline.jobs.state import ADAMW, fit


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        args: Its training's arguments, as far as they are plain values.
        models: Models with the raw weights ("model") and the averaged ones ("ema").
        moments: AdamW's moments by number of the parameter; empty if there are none.
    """

    args: dict[Any, Any]
    models: dict[str, GET | ViT]
    moments: dict[int, dict[str, Tensor]]


def read_checkpoint(path: Path, heads: int | None) -> Checkpoint:
    """Read a checkpoint; its models evaluate as locuslab/get does.

    Args:
        path: A file of torch.save.
        heads: Attention heads of a model without a published name, which no tensor shows.

    Raises:
        InputError: If the file is no such checkpoint or its parts contradict each other.
    """
    with open_torch_file(path) as content:
        match content:
            case {"args": Namespace(attributes=args), "model": dict(), "ema": dict()}:
                pass
            case _:
                raise InputError(
                    f"expected args, model and ema in {path}, got something else; "
                    "it is no checkpoint of locuslab/get"
                )
        args = {name: value for name, value in args.items() if _is_plain(value)}
        states = {name: _read_state(content[name], path) for name in ("model", "ema")}
        models = {name: _build(state, args, heads) for name, state in states.items()}
        moments = _read_moments(content.get("opt"), list(states["model"]), models["model"])
    return Checkpoint(args, models, moments)


def _is_plain(value: object) -> bool:
    """Say whether a value is short: lists in lists may be endless when they are printed."""
    if isinstance(value, list):
        return (
            len(value) <= 100
            and not any(isinstance(entry, list) for entry in value)
            and all(_is_plain(entry) for entry in value)
        )
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 1000)


def _read_state(stored: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    for name, tensor in stored.items():
        if not (isinstance(name, str) and isinstance(tensor, StoredTensor)):
            raise InputError(
                f"expected a state dict in {path}, got {type(tensor).__name__} at "
                f"{str(name)[:100]!r}; it is no checkpoint of locuslab/get"
            )
    return {name: tensor.read() for name, tensor in stored.items()}


def _build(state: Mapping[str, Tensor], args: dict[Any, Any], heads: int | None) -> GET | ViT:
    """Build the model of a state dict and compare it with what the arguments say."""
    size = str(args.get("model"))[:50]
    published = size in SIZES
    if published:
        heads = GET_SIZES[size][2] if size in GET_SIZES else VIT_SIZES[size.split("/")[0]][2]
    elif heads is None:
        raise InputError(
            f"expected a model among {', '.join(SIZES)}, got {size!r}; "
            "give --heads of your own size; its tensors say everything else"
        )
    iterations = _iterations(args) if "qkv_inj.weight" in state else 1  # a ViT has none
    model = build_from(state, heads=1, iterations=iterations)  # heads may not fit another size
    expected = {
        "input_size": args.get("input_size", model.image_size),
        "cond": bool(args.get("cond", model.num_classes)),
    }
    actual = {"input_size": model.image_size, "cond": bool(model.num_classes)}
    if model.num_classes:
        expected["num_classes"] = args.get("num_classes", model.num_classes)
        actual["num_classes"] = model.num_classes
    if published:
        with torch.device("meta"):
            named = build(
                size,
                image_size=model.image_size,
                channels=model.channels,
                num_classes=model.num_classes,
            )
        expected, actual = expected | _shape(named), actual | _shape(model)
    different = [
        f"{name} {actual.get(name)} instead of {value}"
        for name, value in expected.items()
        if actual.get(name) != value
    ]
    if different:
        raise InputError(
            f"expected tensors of {size} as the arguments say, got {', '.join(different)}; "
            "it is damaged, or trained with changed code"
        )
    return build_from(state, heads=heads, iterations=iterations)


def _shape(model: GET | ViT) -> dict[str, Any]:
    """Return the settings that weights depend on."""
    names = ("patch_size", "width", "depth", "mlp_ratio")
    more = ("equilibrium_depth", "equilibrium_mlp_ratio") if isinstance(model, GET) else ()
    return {"kind": type(model).__name__} | {name: model.config[name] for name in (*names, *more)}


def _iterations(args: dict[Any, Any]) -> int:
    """Return the number of iterations with which locuslab/get evaluates."""
    for name, known in (("f_solver", "fixed_point_iter"), ("f_stop_mode", "abs")):
        if (value := args.get(name, known)) != known:
            raise InputError(
                f"expected {name} {known}, got {str(value)[:50]!r}; "
                "images of another solver cannot be made again"
            )
    match args:
        case {"eval_f_max_iter": int(count)} if count > 0:
            return count
        case {"f_max_iter": int(most)}:
            match args.get("eval_factor", 1.0):
                case int(factor) | float(factor) if (count := int(most * factor)) > 0:
                    return count
    raise InputError(
        "expected eval_f_max_iter or f_max_iter above 0 in the arguments, got neither; "
        "it is no checkpoint of locuslab/get"
    )


def _read_moments(stored: Any, names: list[str], model: GET | ViT) -> dict[int, dict[str, Tensor]]:
    """Return AdamW's moments by our numbers of the trained parameters; empty if there are none.

    locuslab/get numbers its parameters in the order of its state dict, including the frozen table
    of positions.
    """
    match stored:
        case {"state": dict(state)} if state:
            pass
        case _:
            return {}
    ours = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers = {name: number for number, name in enumerate(ours)}
    moments: dict[int, dict[str, Tensor]] = {}
    for index, values in state.items():
        known = isinstance(index, int) and 0 <= index < len(names) and isinstance(values, dict)
        if not (known and values.keys() == ADAMW and rename(names[index]) in numbers):
            raise InputError(
                "expected AdamW's step, exp_avg, exp_avg_sq of trained parameters, got others "
                f"at {str(index)[:50]!r}; it is damaged, or trained with changed code"
            )
        moments[numbers[rename(names[index])]] = {k: _number(v) for k, v in values.items()}
    if not fit(moments, list(ours.values())):
        raise InputError(
            "expected AdamW's moments of every trained parameter, got others; "
            "it is damaged, or trained with changed code"
        )
    return moments


def _number(value: object) -> Tensor:
    match value:
        case StoredTensor():
            return value.read()
        case int() | float():  # the step, before PyTorch 1.12
            return torch.tensor(float(value))
    raise InputError(f"expected a tensor in the optimiser's state, got {type(value).__name__}")
