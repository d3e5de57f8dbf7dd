"""Reads the pickle of an NVlabs EDM checkpoint without executing anything in it.

The stack machine in pickle_machine.py calls nothing. A name like `torch._utils._rebuild_tensor_v2`
is a symbol, for which `_call` returns inert values of our own; names that are not listed here are
refused. The Python source that a checkpoint carries (`module_src`) is skipped like any other
string. checkpoint.py makes a network of the result, tensors and plain values.
"""

import io
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.teachers.edm.pickle_machine import (
    Dialect,
    Persistent,
    Refused,
    Symbol,
    keys,
    load,
    tensor_in,
)
from get.errors import InputError

Number = bool | int | float
Scalar = str | Number | None
MAX_DEPTH = 8  # of modules within modules; EDM's networks have 5


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, in plain values.

    Attributes:
        wrapper: Class name of the preconditioning, such as "EDMPrecond".
        arguments: Keyword arguments of its constructor; lists hold scalars only.
        state: Its state dict.
        attributes: Numbers recorded in its modules, by dotted name, to compare with ours.
    """

    wrapper: str
    arguments: dict[str, Scalar | list[Scalar]]
    state: dict[str, Tensor]
    attributes: dict[str, Number] = field(default_factory=dict)


def read_pickle(path: Path) -> Checkpoint:
    """Read the network under the key `ema` of a checkpoint `*.pkl` of NVlabs EDM.

    Raises:
        InputError: If the file names anything that such a checkpoint does not need, is cut
            short, or is no such checkpoint.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise Refused("an empty file; copy or download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _checkpoint(load(data, len(data), _OUTER))
    except OSError as error:
        problem = f"{type(error).__name__}; check the path"
    except Refused as refused:
        problem = str(refused).encode("unicode_escape").decode()  # names in it may be anything
    raise InputError(f"expected an NVlabs EDM checkpoint in {path}, got {problem}")


@dataclass(eq=False)
class _Module:
    """A torch module or EDM object: its class name and instance dictionary."""

    class_name: str
    state: dict | None = None


@dataclass(eq=False)
class _DType:
    """The numpy type of a scalar."""

    order: str | None = None


@dataclass(frozen=True, eq=False)
class _Storage:
    """The one-dimensional memory of tensors."""

    data: Tensor


# ------------------------------------------------------------------ names and their values


def _call(symbol: Symbol, arguments: object) -> Any:
    """Return the value in place of a call in the pickle; refuse unknown calls."""
    match str(symbol), arguments:
        case "torch_utils.persistence._reconstruct_persistent_obj", (dict(description),):
            return _persistent(description)
        case "torch.storage._load_from_bytes", (bytes(data),):
            return _storage(data)
        case (
            "torch._utils._rebuild_tensor_v2",
            (_Storage() as storage, int(offset), tuple(size), tuple(stride), bool(), dict(), *_),
        ):
            return tensor_in(storage.data, offset, size, stride)
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, bool(), dict()):
            return tensor
        case "torch.nn.modules.container.ModuleDict", ():
            return _Module("ModuleDict")
        case "collections.OrderedDict" | "dnnlib.util.EasyDict", ():
            return {}
        case "numpy.dtype", ("f8", False, True):
            return _DType()
        case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", (
            _DType(order="<"),
            bytes(data),
        ) if len(data) == 8:
            return struct.unpack("<d", data)[0]
        case "builtins.set" | "__builtin__.set", (list(items),):
            return set(keys(items))
        case "_codecs.encode", (str(text), "latin1") if all(ord(c) < 256 for c in text):
            return text.encode("latin1")
    raise Refused(f"a call of {symbol} with unknown arguments; it is damaged or made to harm")


def _persistent(description: dict) -> _Module:
    """Return the class name and instance dictionary of an EDM object; its source is ignored."""
    match description:
        case {
            "type": "class",
            "version": 6,
            "module_src": str(),
            "class_name": str(name),
            "state": dict(state),
        } if len(description) == 5:
            return _Module(name, state)
    raise Refused("an EDM object of unknown layout; it is damaged or not of NVlabs' EDM code")


def _storage(data: bytes) -> _Storage:
    """Parse torch's older format of a storage: five pickles, a count, the raw numbers."""
    stream = io.BytesIO(data)
    magic, version, system, storage, names = (load(stream, len(data), _INNER) for _ in range(5))
    start = stream.tell() + 8
    match system, storage:
        case (
            {"little_endian": True},
            Persistent(("storage", Symbol(), str(key), str(), int(count), None)),
        ) if (
            (magic, version, names) == (0x1950A86A20F9469CFC6C, 1001, [key])
            and int.from_bytes(data[start - 8 : start], "little") == count
            and len(data) == start + 4 * count
        ):
            numbers = np.frombuffer(data, "<f4", count, start)
            return _Storage(torch.from_numpy(numbers.astype(np.float32)))
    raise Refused("a storage whose parts contradict each other; copy or download it again")


def _fill(target: Any, state: object) -> None:
    match target, state:
        case _Module("ModuleDict", None), dict():
            target.state = state
        case _DType(None), (3, str(order), None, None, None, -1, -1, 0):
            target.order = order
        case dict(), dict() if not state:  # an EasyDict of older Pythons
            pass
        case _:
            raise Refused("a pickle that fills something it may not; it is made to harm")


_ALLOWED = frozenset(
    {
        Symbol("torch_utils.persistence", "_reconstruct_persistent_obj"),
        Symbol("collections", "OrderedDict"),
        Symbol("torch._utils", "_rebuild_parameter"),
        Symbol("torch._utils", "_rebuild_tensor_v2"),
        Symbol("torch.storage", "_load_from_bytes"),
        Symbol("torch.nn.modules.container", "ModuleDict"),
        Symbol("numpy.core.multiarray", "scalar"),  # numpy 1
        Symbol("numpy._core.multiarray", "scalar"),  # numpy 2
        Symbol("numpy", "dtype"),
        Symbol("dnnlib.util", "EasyDict"),
        Symbol("builtins", "set"),
        Symbol("__builtin__", "set"),
        Symbol("_codecs", "encode"),  # bytes in protocol 2
    }
)
_OUTER = Dialect(_ALLOWED, _call, _fill)
_INNER = Dialect(frozenset({Symbol("torch", "FloatStorage")}), _call, _fill)  # never called


# ------------------------------------------------------------------ from objects to a checkpoint


def _checkpoint(content: Any) -> Checkpoint:
    match content:
        case {
            "ema": _Module(
                class_name=wrapper, state={"_init_args": (), "_init_kwargs": dict(given)}
            ) as root
        }:
            result = Checkpoint(wrapper, {k: _plain(k, v) for k, v in given.items()}, {})
            _walk(root, "", result, set())
            return result
    raise Refused("a pickle without an EDM network under the key 'ema'; choose another file")


def _plain(name: object, value: object) -> Scalar | list[Scalar]:
    if isinstance(name, str) and isinstance(value, Scalar):
        return value
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(name, str) and all(isinstance(item, Scalar) for item in items):
        return list(items)
    raise Refused(f"an argument {str(name)[:50]!r} that is no plain value; it is damaged")


def _walk(module: object, prefix: str, result: Checkpoint, seen: set[int]) -> None:
    """Gather tensors and numbers of a module and its children, as `state_dict` does."""
    match module:
        case _Module(
            state={
                "_parameters": dict(own),
                "_buffers": dict(buffers),
                "_modules": dict(children),
            } as state
        ) if id(module) not in seen and prefix.count(".") <= MAX_DEPTH:
            seen.add(id(module))
        case _:
            raise Refused(f"something other than a torch module at {prefix[:200]!r}; it is damaged")
    numbers = {k: v for k, v in state.items() if isinstance(v, Number)}
    result.attributes.update({f"{prefix}{k}": v for k, v in numbers.items()})
    for name, tensor in (own | buffers).items():
        if isinstance(tensor, Tensor):
            result.state[f"{prefix}{name}"] = tensor
        elif tensor is not None:
            raise Refused(f"no tensor at {prefix[:200]!r}; it is damaged")
    for name, child in children.items():
        _walk(child, f"{prefix}{name}.", result, seen)
