"""Reads files of `torch.save` as data: tensors and plain values, nothing executed.

Such a file is a zip archive: `data.pkl` describes the content, and every storage has a member with
its numbers. The pickle goes through the stack machine of teachers/edm/pickle_machine.py with a
dialect that knows tensors, OrderedDict and argparse.Namespace. A tensor is read when `read` is
called, so a checkpoint takes only the memory of the tensors in use.
"""

import io
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.teachers.edm.pickle_machine import Dialect, Persistent, Refused, Symbol, load, tensor_in
from get.errors import InputError

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
CHUNK = 2**22  # bytes per read
# What zipfile raises if an archive contradicts itself.
DAMAGE = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error)


@dataclass(eq=False)
class Namespace:
    """Takes the place of an `argparse.Namespace`: its attributes and no behaviour."""

    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in an open file.

    Attributes:
        read: Returns a contiguous copy in memory of its own; InputError if the file is damaged.
    """

    read: Callable[[], Tensor]


@contextmanager
def open_torch_file(path: Path) -> Iterator[Any]:
    """Yield the content of a file of `torch.save`, whose `StoredTensor`s are readable inside.

    Dictionaries, lists, tuples, numbers and text come as they are; other objects are refused.

    Raises:
        InputError: If the file is missing, not of torch.save, damaged, or names other objects.
    """
    with _explained(path):
        file = path.open("rb")
    with file:
        with _explained(path):
            archive = _Archive(path, file)
            content = archive.content()
        yield content


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into one line."""
    try:
        yield
        return
    except OSError as error:
        problem = f"{type(error).__name__}; check the path"
    except DAMAGE as error:
        problem = f"one cut short or damaged ({str(error)[:100]}); copy or download it again"
    except Refused as refused:
        problem = str(refused)
    problem = problem.encode("unicode_escape").decode()  # names in it may be anything
    raise InputError(f"expected a file of torch.save in {path}, got {problem}")


class _Archive:
    """The zip archive that `torch.save` writes: members in one folder, none compressed."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        _check_kind(file)
        self.zip = zipfile.ZipFile(file)
        members = self.zip.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise Refused("an archive of more than its own size; it is made to harm")
        pickles = [m.filename for m in members if m.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("a zip archive without a data.pkl of torch.save; choose another file")
        self.folder = pickles[0].removesuffix("data.pkl")
        name = self.folder + "byteorder"
        order = bytes(self._bytes(name)) if name in self.zip.NameToInfo else b"little"  # old files
        if order not in (b"little", b"big"):
            raise Refused(f"an unknown byte order; this machine's is {sys.byteorder}")
        self.order = "<" if order == b"little" else ">"

    def content(self) -> Any:
        """Return the content of the pickle."""
        pickle = self._bytes(self.folder + "data.pkl")
        return load(io.BytesIO(pickle), len(pickle), Dialect(_ALLOWED, self._call, _fill))

    def tensor(
        self, kind: str, member: str, count: int, offset: int, shape: tuple, stride: tuple
    ) -> Tensor:
        """Return a tensor, a view of the `count` numbers of a member, in memory of its own."""
        with _explained(self.path):
            dtype, data = DTYPES[kind], self._bytes(member)
            if len(data) != dtype.itemsize * count:
                raise Refused(
                    f"{len(data)} bytes of {count} numbers of {dtype}; copy or download it again"
                )
            stored = np.frombuffer(data, f"{self.order}i{dtype.itemsize}")
            native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
            view = tensor_in(torch.from_numpy(native).view(dtype), offset, shape, stride)
            if view.is_contiguous() and view.numel() == count:
                return view  # already the only user of its numbers
            return view.clone(memory_format=torch.contiguous_format)

    def _bytes(self, name: str) -> memoryview:
        """Return a member, whose checksum zipfile verifies, in memory of its own."""
        member = self.zip.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused("a compressed or encrypted archive, which torch.save does not write")
        data = io.BytesIO()
        with self.zip.open(member) as file:
            shutil.copyfileobj(file, data, CHUNK)
        return data.getbuffer()

    def _call(self, symbol: Symbol, arguments: object) -> Any:
        """Return the value in place of a call in the pickle; refuse unknown calls."""
        match str(symbol), arguments:
            case (
                "torch._utils._rebuild_tensor_v2",
                (Persistent() as stored, int(offset), tuple(size), tuple(stride), bool(), dict()),
            ):
                storage = self._storage(stored)
                return StoredTensor(partial(self.tensor, *storage, offset, size, stride))
            case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, bool(), dict()):
                return tensor
            case "collections.OrderedDict", ():
                return {}
            case "argparse.Namespace", ():
                return Namespace()
        raise Refused(f"a call of {symbol} with unknown arguments; it is damaged or made to harm")

    def _storage(self, stored: Persistent) -> tuple[str, str, int]:
        """Return the kind of a storage, its member of the archive, and the count of its numbers."""
        match stored.description:
            case ("storage", Symbol("torch", kind), str(key), str(), int(count)) if kind in DTYPES:
                if (name := f"{self.folder}data/{key}") not in self.zip.NameToInfo:
                    raise Refused(f"a tensor whose numbers {key[:50]!r} are missing; copy it again")
                return kind, name, count
        raise Refused("a tensor stored in an unknown way; it is damaged or made to harm")


def _check_kind(file: BinaryIO) -> None:
    """Refuse files that are no zip archive, and say what they are."""
    start = file.read(4)
    file.seek(0)
    if not start:
        raise Refused("an empty file; copy or download it again")
    if start[:1] == b"\x80":
        raise Refused(
            "a bare pickle, such as torch.save wrote before PyTorch 1.6; "
            "have it saved again by a newer PyTorch"
        )
    if start != b"PK\x03\x04":
        raise Refused("no zip archive; choose another file")


def _fill(target: Any, state: Any) -> None:
    match target, state:
        case Namespace(attributes=old), dict() if not old:
            target.attributes = state
        case dict(), {"_metadata": dict()} if len(state) == 1:  # of a state dict; unused
            pass
        case _:
            raise Refused("a pickle that fills something it may not; it is made to harm")


_ALLOWED = frozenset(
    {
        Symbol("torch._utils", "_rebuild_tensor_v2"),
        Symbol("torch._utils", "_rebuild_parameter"),
        Symbol("collections", "OrderedDict"),
        Symbol("argparse", "Namespace"),
        *(Symbol("torch", name) for name in DTYPES),
    }
)
