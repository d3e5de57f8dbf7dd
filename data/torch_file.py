"""Reads files of `torch.save` as data: tensors and plain values, nothing executed.

Such a file is a zip archive: `data.pkl` says what there is, a member each holds the numbers of a
storage. The pickle goes through the stack machine of teachers/pickle_machine.py with a dialect
that knows tensors, OrderedDict and argparse.Namespace. Tensors are read when asked for, so a
checkpoint costs the memory of what is used of it.
"""

import io
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
CHUNK = 2**22  # bytes read at once
# What zipfile raises where the parts of an archive contradict each other.
DAMAGE = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error)


@dataclass(eq=False)
class Namespace:
    """What stands for an `argparse.Namespace`: its attributes and no behaviour."""

    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in an open file."""

    archive: "_Archive"
    storage: "_Storage"
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of its numbers."""
        return self.storage.dtype

    def read(self) -> Tensor:
        """Return it, contiguous and in memory of its own.

        Raises:
            InputError: If the file does not hold it whole.
        """
        with _explained(self.archive.path):
            numbers = self.archive.numbers(self.storage)
            tensor = tensor_in(numbers, self.offset, self.shape, self.stride)
            whole = tensor.is_contiguous() and tensor.numel() == numbers.numel()
            return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


@contextmanager
def open_torch_file(path: Path) -> Iterator[Any]:
    """Yield what a file of `torch.save` holds; its `StoredTensor`s can be read until the end.

    Dictionaries, lists, tuples, numbers and text are themselves, other objects are refused.

    Raises:
        InputError: If the file is missing, none of torch's, damaged, or asks for anything else.
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
    """Turn what goes wrong in a file into one line."""
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


@dataclass(frozen=True)
class _Storage:
    """The one-dimensional memory of tensors: a member of the archive."""

    name: str
    dtype: torch.dtype
    count: int


class _Archive:
    """The zip archive that `torch.save` writes: members under one folder, none compressed."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        _check_kind(file)
        self.zip = zipfile.ZipFile(file)
        members = self.zip.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise Refused("an archive of more than its own size; it is made to harm")
        found = [m.filename for m in members if m.filename.endswith("/data.pkl")]
        if len(found) != 1:
            raise Refused("a zip archive without a data.pkl of torch.save; choose another file")
        self.folder = found[0].removesuffix("data.pkl")
        self.order = self._byte_order()

    def content(self) -> Any:
        """Return what the pickle says."""
        pickle = self._bytes(self.folder + "data.pkl")
        dialect = Dialect(_ALLOWED, self._call, _fill)
        return load(io.BytesIO(pickle), len(pickle), dialect)

    def numbers(self, storage: _Storage) -> Tensor:
        """Return a storage's numbers in the order of this machine."""
        size, data = storage.dtype.itemsize, self._bytes(storage.name)
        if len(data) != size * storage.count:
            raise Refused(
                f"{len(data)} bytes of {storage.count} numbers of {storage.dtype}; "
                "copy or download it again"
            )
        stored = np.frombuffer(data, f"{self.order}i{size}")
        return torch.from_numpy(stored.astype(f"=i{size}", copy=False)).view(storage.dtype)

    def _byte_order(self) -> str:
        if self.folder + "byteorder" not in self.zip.namelist():  # before PyTorch 2.1
            return "<"
        match bytes(self._bytes(self.folder + "byteorder")):
            case b"little":
                return "<"
            case b"big":
                return ">"
        raise Refused(f"an unknown byte order; this machine's is {sys.byteorder}")

    def _bytes(self, name: str) -> bytearray:
        """Return a member, which zipfile compares with its checksum."""
        member = self.zip.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused("a compressed or encrypted archive, which torch.save does not write")
        data = bytearray(member.file_size)
        view, at = memoryview(data), 0
        with self.zip.open(member) as file:
            while chunk := file.read(CHUNK):
                view[at : at + len(chunk)] = chunk
                at += len(chunk)
        if at != len(data):
            raise EOFError(f"{at} bytes of {len(data)}")
        return data

    def _call(self, symbol: Symbol, arguments: object) -> Any:
        """Return what a call in the pickle stands for; every other call is refused."""
        match str(symbol), arguments:
            case (
                "torch._utils._rebuild_tensor_v2",
                (Persistent() as stored, int(offset), tuple(size), tuple(stride), bool(), dict()),
            ):
                return StoredTensor(self, self._storage(stored), offset, size, stride)
            case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, bool(), dict()):
                return tensor
            case "collections.OrderedDict", ():
                return {}
            case "argparse.Namespace", ():
                return Namespace()
        raise Refused(f"a call of {symbol} with unknown arguments; it is damaged or made to harm")

    def _storage(self, stored: Persistent) -> _Storage:
        description: Any = stored.description
        match description:
            case ("storage", Symbol("torch", kind), str(key), str(), int(count)) if kind in DTYPES:
                name = f"{self.folder}data/{key}"
                if name in self.zip.NameToInfo:
                    return _Storage(name, DTYPES[kind], count)
                raise Refused(f"a tensor whose numbers {key[:50]!r} are missing; copy it again")
        raise Refused("a tensor stored in an unknown way; it is damaged or made to harm")


def _check_kind(file: BinaryIO) -> None:
    """Refuse by name what is no zip archive."""
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
        case dict(), {"_metadata": dict()} if len(state) == 1:  # of a state dict: nobody needs it
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
