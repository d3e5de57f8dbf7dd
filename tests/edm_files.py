"""Writes checkpoints as NVlabs' EDM does: persistent objects that carry their source.

The modules that such a pickle names exist only while one is written. Importing `pkl` and
`_nothing_was_executed` gives a test module the path of a pickle and a check after every test.
"""

import os
import pickle  # noqa: TID251  tests write pickles; nothing here reads one
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.teachers.edm.checkpoint import NETWORKS, WRAPPERS, Network, save
from data.teachers.edm.layers import Block, Conv, FourierEmbedding, PositionalEmbedding
from data.teachers.edm.pickle_reader import Checkpoint, read_pickle
from data.teachers.edm.precondition import Precond, denoise
from get.errors import InputError

CLASS_NAMES: dict[type, str] = {
    Conv: "Conv2d",
    Block: "UNetBlock",
    nn.Linear: "Linear",
    nn.GroupNorm: "GroupNorm",
    FourierEmbedding: "FourierEmbedding",
    PositionalEmbedding: "PositionalEmbedding",
}
SIZE: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
VE: dict[str, Any] = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vp in EDM": ("EDMPrecond", {**SIZE, "model_type": "SongUNet", "augment_dim": 9}),
    "vp in EDM, 5 classes": ("EDMPrecond", {**SIZE, "model_type": "SongUNet", "label_dim": 5}),
    "ve in EDM": ("EDMPrecond", {**SIZE, **VE, "model_type": "SongUNet"}),
    "vp in VP": ("VPPrecond", {**SIZE, "use_fp16": False}),
    "ve in VE": ("VEPrecond", {**SIZE, **VE, "label_dim": 2}),
    "adm in EDM": ("EDMPrecond", {**SIZE, "label_dim": 5, "use_fp16": True}),
}
SOURCE = "import os\nos.system('touch executed')\nopen('executed', 'w')\nraise SystemExit\n"
PLAIN = bool | int | float | str | None


class Denoiser(nn.Module):
    """A raw network and its preconditioning, as EDM's wrappers hold them."""

    def __init__(self, precond: Precond, network: Network) -> None:
        super().__init__()
        self.precond, self.model = precond, network

    def forward(self, x: Tensor, sigma: Tensor, *labels: Tensor | None) -> Tensor:
        return denoise(self.precond, lambda x, time: self.model(x, time, *labels), x, sigma)


def denoiser_of(wrapper: str, arguments: dict[str, Any]) -> Denoiser:
    """Return the network that such arguments mean, with random weights."""
    sizes: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()
    }
    sizes.pop("use_fp16", None)
    precond, model_type = WRAPPERS[wrapper]
    network, config = NETWORKS[sizes.pop("model_type", model_type)]
    torch.manual_seed(0)
    denoiser = Denoiser(precond(), network(config(**sizes)))
    for name, tensor in denoiser.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.normal_(std=0.2)
    return denoiser


def checkpoint(kind: str = "vp in EDM, 5 classes") -> Checkpoint:
    wrapper, arguments = KINDS[kind]
    return Checkpoint(wrapper, arguments, denoiser_of(wrapper, arguments).state_dict())


def save_kind(folder: Path, kind: str = "vp in EDM, 5 classes", **arguments: float) -> Path:
    """Write a converted folder, with other arguments than the kind's if some are given."""
    before = checkpoint(kind)
    folder.mkdir()
    save(replace(before, arguments={**before.arguments, **arguments}), folder)
    return folder


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


SYSTEM = Call(os.system, "touch executed")


class Persistent:
    """Pickles as an object of EDM's persistence module."""

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
        module = sys.modules["torch_utils.persistence"]
        return module._reconstruct_persistent_obj, (self.description,)


@contextmanager
def _edm_modules() -> Iterator[None]:
    names = "torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"
    modules = {name: ModuleType(name) for name in names}

    def rebuild(description: dict) -> None:
        raise AssertionError("written, never called")

    rebuild.__module__, rebuild.__qualname__ = names[1], "_reconstruct_persistent_obj"
    vars(modules[names[1]])["_reconstruct_persistent_obj"] = rebuild
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    vars(modules["dnnlib.util"])["EasyDict"] = easy
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
    config = denoiser.model.config
    sizes = {n: getattr(config, n) for n in ("img_resolution", "img_channels")}
    state = instance(denoiser, arguments) | sizes | {"use_fp16": False}
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
    """Return a checkpoint of one linear layer, too small for any network; tests damage it."""
    layer = nn.Linear(len(values) or 3, 2)
    torch.nn.init.constant_(layer.weight, 0.5)
    root = nn.Module()
    root.model = layer
    return snapshot(Persistent("EDMPrecond", instance(root, {"img_channels": 3}) | state))


def write(path: Path, content: Callable[[], object], protocol: int = 4) -> Path:
    path.write_bytes(dumps(content, protocol))
    return path


def write_kind(path: Path, kind: str, protocol: int = 4, **attributes: object) -> Denoiser:
    wrapper, arguments = KINDS[kind]
    denoiser = denoiser_of(wrapper, arguments)
    write(path, lambda: snapshot(wrapped(denoiser, wrapper, arguments, **attributes)), protocol)
    return denoiser


def changed(whole: bytes) -> Iterator[bytes]:
    """Yield 600 times the bytes with one or four of them changed."""
    chance = random.Random(0)
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        yield bytes(data)


def refusal(pkl: Path) -> str:
    with pytest.raises(InputError, match=r"expected an NVlabs EDM checkpoint in .*, got ") as error:
        read_pickle(pkl)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def pkl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a pickle, in the folder where a trap would leave the file `executed`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "network.pkl"


@pytest.fixture(autouse=True)
def _nothing_was_executed(pkl: Path) -> Iterator[None]:
    before = set(sys.modules)
    yield
    assert not (pkl.parent / "executed").exists()
    assert not {"torch_utils", "dnnlib"} & (set(sys.modules) - before)
