"""Writes checkpoints as NVlabs' EDM does: persistent objects that carry their source.

The names that such a pickle calls exist only while one is written.
"""

import pickle  # noqa: TID251  tests write pickles; nothing here reads one
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from data.teachers.edm.checkpoint import Denoiser
from data.teachers.edm.layers import Block, Conv, FourierEmbedding, PositionalEmbedding

CLASS_NAMES: dict[type, str] = {
    Conv: "Conv2d",
    Block: "UNetBlock",
    nn.Linear: "Linear",
    nn.GroupNorm: "GroupNorm",
    FourierEmbedding: "FourierEmbedding",
    PositionalEmbedding: "PositionalEmbedding",
}
SOURCE = "import os\nos.system('touch executed')\nopen('executed', 'w')\nraise SystemExit\n"
PLAIN = bool | int | float | str | None


class Call:
    """Pickled as a call of anything with any arguments."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


class Persistent:
    """Pickled as an object of EDM's persistence module."""

    def __init__(self, class_name: str, state: dict, **changes: Any) -> None:
        self.description = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": class_name,
            "state": state,
            **changes,
        }

    def __reduce__(self) -> tuple:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (
            self.description,
        )


@contextmanager
def _edm_modules() -> Iterator[None]:
    names = "torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"
    modules = {name: ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(description: dict) -> None:
        raise AssertionError("it is only written")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    modules["torch_utils.persistence"].__dict__["_reconstruct_persistent_obj"] = (
        _reconstruct_persistent_obj
    )
    modules["dnnlib.util"].__dict__["EasyDict"] = easy
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def dumps(content: Callable[[], object], protocol: int = 4) -> bytes:
    """Pickle what `content` returns when EDM's modules are there."""
    with _edm_modules():
        return pickle.dumps(content(), protocol)


def easy_dict(**items: object) -> dict:
    return sys.modules["dnnlib.util"].EasyDict(**items)


def instance(module: nn.Module, arguments: dict | None = None) -> dict[str, Any]:
    """Return the instance dictionary that EDM's module of this kind would have."""
    state = dict(nn.Module().__dict__)
    for name, value in module.__dict__.items():
        if not name.startswith("_") and isinstance(value, PLAIN):
            state[name] = np.float64(value) if name == "skip_scale" else value
    own = {name: p for name, p in module._parameters.items() if p is not None}
    absent = module._parameters.keys() - own.keys()
    children = {k: persistent(m) for k, m in module._modules.items() if m is not None}
    state |= {
        "_parameters": OrderedDict(own),
        "_buffers": dict(module._buffers),
        "_modules": children,
        "_init_args": (),
        "_init_kwargs": arguments or {},
        **dict.fromkeys(absent),
    }
    return state


def persistent(module: nn.Module) -> object:
    if isinstance(module, nn.ModuleDict):  # torch's own, with our children
        result = nn.ModuleDict()
        result._modules = {k: persistent(m) for k, m in module.items()}  # pyrefly: ignore
        return result
    return Persistent(CLASS_NAMES.get(type(module), type(module).__name__), instance(module))


def wrapped(denoiser: Denoiser, wrapper: str, arguments: dict, **attributes: object) -> Persistent:
    """Return the wrapper that EDM would keep under `ema`."""
    noted = {n: getattr(denoiser.config, n) for n in ("img_resolution", "img_channels")}
    state = instance(denoiser, arguments) | noted | {"use_fp16": False}
    return Persistent(wrapper, state | vars(denoiser.precond) | attributes)


def snapshot(ema: object) -> dict[str, object]:
    """Return what a training snapshot holds."""
    return {
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}}),
        "augment_pipe": None,
        "dataset_kwargs": easy_dict(class_name="ImageFolderDataset", path="x.zip", xflip=False),
        "tags": {"set", "of", "text"},
        "ema": ema,
    }


def tiny(*values: float, **state: object) -> dict[str, object]:
    """Return a checkpoint too small for any network, to harm: one linear layer."""
    layer = nn.Linear(len(values) or 3, 2)
    torch.nn.init.constant_(layer.weight, 0.5)
    root = nn.Module()
    root.model = layer
    return snapshot(Persistent("EDMPrecond", instance(root, {"img_channels": 3}) | state))
