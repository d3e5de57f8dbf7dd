"""EDM pickles that are refused: commands wherever they hide, and files cut, changed or damaged."""

import os
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data.teachers.edm.pickle_reader import read_pickle
from get.errors import InputError

from .edm_files import SYSTEM, Call, Persistent, changed, dumps, refusal, tiny, write
from .edm_files import _nothing_was_executed as _nothing_was_executed
from .edm_files import pkl as pkl

PLACES: dict[str, Callable[[Any], object]] = {
    "alone": lambda trap: trap,
    "next to ema": lambda trap: {**tiny(), "loss_fn": trap},
    "as ema": lambda trap: {"ema": trap},
    "in ema": lambda trap: tiny(training=trap),
    "as an argument": lambda trap: tiny(_init_kwargs={"img_channels": trap}),
    "as a state": lambda trap: {"ema": Persistent("EDMPrecond", trap)},
    "as a source": lambda trap: {"ema": Persistent("EDMPrecond", {}, module_src=trap)},
    "as a storage's bytes": lambda trap: Call(torch.storage._load_from_bytes, trap),
}
TRAPS = {
    "posix.system": SYSTEM,
    "builtins.eval": Call(eval, "open('executed', 'w')"),
    "builtins.exec": Call(exec, "open('executed', 'w')"),
    "io.open": Call(open, "executed", "w"),
    "builtins.getattr": Call(getattr, Call(__import__, "os"), "system"),
    "builtins.__import__": Call(__import__, "this"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", "executed"]),
    "functools.partial": partial(os.system, "touch executed"),
    "torch.serialization.load": Call(torch.serialization.load, "other.pt"),
    "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_command_is_refused_wherever_it_hides(pkl, place, protocol):
    write(pkl, lambda: place(SYSTEM), protocol)
    assert "asks for posix.system" in refusal(pkl)


@pytest.mark.parametrize(("name", "trap"), TRAPS.items(), ids=TRAPS)
def test_whatever_else_is_asked_for_is_refused_by_name(pkl: Path, name: str, trap: object) -> None:
    write(pkl, lambda: tiny(training=trap))
    message = refusal(pkl)
    assert "asks for " in message
    assert name in message or name == "builtins.getattr"  # its argument comes first


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


STREAMS = {  # instructions by hand
    "a dotted name": (named("collections", "OrderedDict.fromkeys"), "OrderedDict.fromkeys"),
    "a dotted path to os": (named("torch._utils", "os.system"), "torch._utils.os.system"),
    "a split module": (named("torch_utils", "persistence._reconstruct_persistent_obj"), "asks for"),
    "a name with a line break": (named("os", "a\nb"), r"os.a\nb"),
    "a name that is no text": (b"]]\x93", "no text"),
    "FloatStorage outside a storage": (named("torch", "FloatStorage"), "torch.FloatStorage"),
    "a call of text": (text("os.system") + b")R", "no name"),
    "a call of a dictionary": (b"})R", "no name"),
    "NEWOBJ_EX": (named("collections", "OrderedDict") + b")}\x92", "NEWOBJ_EX"),
    "INST": (b"(ios\nsystem\n", "INST"),
    "OBJ": (b"(" + named("collections", "OrderedDict") + b"o", "OBJ"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "PERSID": (b"Pkey\n", "PERSID"),
    "state for a name": (
        named("collections", "OrderedDict") + b"}" + text("__code__") + b"Ns" + b"b",
        "fills something",
    ),
    "state for a dictionary": (b"}}" + text("k") + b"Nsb", "fills something"),
    "arguments for a set": (named("builtins", "set") + b"K\x01\x85R", "builtins.set"),
    "a huge integer": (b"\x8b" + struct.pack("<i", 10**5) + b"\x01" * 10**5, "bits"),
    "a list as a key": (b"}]Ns", "a key"),
    "a key without value": (b"}(K\x01u", "lacks its value"),
    "nothing to take": (b"0.", "POP"),
    "an empty stack": (b"\x85", "takes more than it holds"),
    "no mark": (b"t", "lacks a mark"),
    "no list": (b"}Na", "lacks a list"),
    "an unknown memo": (b"h\x07", "recalls"),
    "an empty memo": (b"\x94", "lacks a"),
    "bytes beyond the end": (b"\x8e" + struct.pack("<Q", 2**62) + b"abc", "cut short"),
    "a list that holds itself": (b"]\x94h\x00a", "without an EDM network"),
    "nothing": (b"N", "without an EDM network"),
}


@pytest.mark.parametrize(("stream", "what"), STREAMS.values(), ids=STREAMS)
def test_instructions_that_no_checkpoint_has_are_refused(pkl, stream, what):
    pkl.write_bytes(b"\x80\x04" + stream + b".")
    assert what in refusal(pkl).replace("\\\\", "\\")


@pytest.mark.parametrize("data", [b"PK\x03\x04zip", b"<!DOCTYPE html>", b"\x00" * 99, b"\x80\x04"])
def test_a_file_of_another_kind_is_refused(pkl: Path, data: bytes) -> None:
    pkl.write_bytes(data)
    refusal(pkl)


def test_a_missing_file_an_empty_one_and_a_folder_are_refused(pkl: Path) -> None:
    assert "FileNotFoundError" in refusal(pkl)
    pkl.touch()
    assert "an empty file" in refusal(pkl)
    pkl.unlink()
    pkl.mkdir()
    assert "IsADirectoryError" in refusal(pkl)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_cut_file_says_so(pkl: Path, protocol: int) -> None:
    original = dumps(tiny, protocol)
    for end in (*range(1, 99), *range(99, len(original), 41), len(original) - 1):
        pkl.write_bytes(original[:end])
        assert f"cut short after {end} bytes" in refusal(pkl)


def test_a_changed_byte_is_read_or_refused_but_never_fails_otherwise(pkl: Path) -> None:
    refused = 0
    for data in changed(dumps(tiny)):
        pkl.write_bytes(data)
        try:
            read_pickle(pkl)
        except InputError:
            refused += 1
    assert refused > 100


def storage(change: Callable[[bytes], bytes]) -> Callable[[], object]:
    """Return a tiny checkpoint whose first storage has changed bytes."""

    def content() -> object:
        rebuild, given = torch.arange(4.0).__reduce_ex__(4)
        inner, (data,) = given[0].__reduce__()
        changed = Call(inner, change(data))
        return tiny(_buffers={"x": Call(rebuild, changed, *given[1:])})

    return content


NUMBERS = torch.arange(4.0).numpy().tobytes()
COMMAND = dumps(lambda: SYSTEM, 2)
STORAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut numbers": lambda data: data[:-1],
    "a number too many": lambda data: data + b"\0\0\0\0",
    "a cut count": lambda data: data[: -len(NUMBERS) - 1],
    "another count": lambda data: data.replace(b"\x04" + b"\0" * 7, b"\x03" + b"\0" * 7),
    "a cut description": lambda data: data[:40],
    "no bytes": lambda data: b"",
    "a command": lambda data: COMMAND + data,
    "a command instead of the class": lambda data: data.replace(
        b"ctorch\nFloatStorage", b"cposix\nsystem"
    ),
    "another class": lambda data: data.replace(b"FloatStorage", b"CharStorage"),
    "another order of bytes": lambda data: data.replace(b"\x88", b"\x89"),
    "another magic number": lambda data: data.replace(b"\x6c\xfc\x9c\x46", b"\x6c\xfc\x9c\x47"),
}  # fmt: skip


@pytest.mark.parametrize("change", STORAGES.values(), ids=STORAGES)
def test_a_storage_that_is_not_whole_or_asks_for_anything_is_refused(pkl, change):
    original = write(pkl, storage(lambda data: data)).read_bytes()
    assert read_pickle(pkl).state["x"].tolist() == [0, 1, 2, 3]
    write(pkl, storage(change))
    assert pkl.read_bytes() != original
    refusal(pkl)


def test_a_storage_within_a_storage_is_refused_by_name(pkl: Path) -> None:
    """Else thousands of them, one within the other, would exhaust the stack."""
    inner = dumps(lambda: Call(torch.storage._load_from_bytes, b""), 2)
    write(pkl, storage(lambda data: inner + data))
    assert "asks for torch.storage._load_from_bytes" in refusal(pkl)
