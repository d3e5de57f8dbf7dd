"""Files of torch.save are read as data, refused by name, and never executed."""

import argparse
import os
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.torch_file import Namespace, StoredTensor, open_torch_file
from get.errors import InputError

from .edm_files import Call, changed
from .locuslab_files import _nothing_was_executed as _nothing_was_executed
from .locuslab_files import convert as convert
from .locuslab_files import refused, saved, untouched


def read(path: Path) -> Any:
    """Return what a file holds, tensors read."""

    def whole(value: Any) -> Any:
        match value:
            case StoredTensor():
                return value.read()
            case Namespace():
                return value.attributes
            case dict():
                return {k: whole(v) for k, v in value.items()}
            case list():
                return [whole(v) for v in value]
        return value

    with open_torch_file(path) as content:
        return whole(content)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES + WHOLE, ids=str)
def test_tensors_of_every_type_are_read_bitwise(tmp_path: Path, dtype: torch.dtype):
    tensor = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    torch.save(tensor, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_views_parameters_and_plain_values_are_read(tmp_path: Path):
    base = torch.arange(12.0)
    content: dict[Any, Any] = {
        "row": base.view(3, 4)[1],
        "turned": base.view(3, 4).T,
        "one": torch.tensor(7.0),
        "parameter": torch.nn.Parameter(base[:2]),
        "state": torch.nn.Linear(2, 2).state_dict(),
        "args": argparse.Namespace(a=1, b=[0.5, None, True], c="text"),
        5: OrderedDict(x=(1, 2)),
    }
    torch.save(content, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    for name in ("row", "turned", "one", "parameter"):
        assert torch.equal(found[name], content[name])
        assert found[name].is_contiguous()
        assert found[name].untyped_storage().nbytes() == found[name].nbytes
    assert torch.equal(found["state"]["weight"], content["state"]["weight"])
    assert found["args"] == vars(content["args"])
    assert found[5] == {"x": (1, 2)}


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], **options: int) -> Path:
    """Write a zip archive again, each member changed or (None) left out."""
    with zipfile.ZipFile(path) as old:
        members = {i.filename: old.read(i) for i in old.infolist()}
    with zipfile.ZipFile(path, "w", **options) as new:  # pyrefly: ignore
        for name, data in members.items():
            if (changed := change(name, data)) is not None:
                new.writestr(name, changed)
    return path


def swapped(name: str, data: bytes) -> bytes:
    if name.endswith("/byteorder"):
        return b"big"
    return np.frombuffer(data, ">f4").astype("<f4").tobytes() if "/data/" in name else data


def test_the_byte_order_of_the_writer_is_honoured_and_little_endian_without_one(tmp_path: Path):
    for change in (swapped, lambda n, d: None if "byteorder" in n else d):
        path = rewrite(saved(tmp_path / "x.pth"), change)
        assert read(path).tolist() == [0, 1, 2, 3, 4, 5]


CHANGES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "no pickle": (lambda n, d: None if n.endswith("data.pkl") else d, "without a data.pkl"),
    "no numbers": (lambda n, d: None if n.endswith("data/0") else d, "are missing"),
    "few numbers": (lambda n, d: d[:-4] if n.endswith("data/0") else d, "20 bytes of 6 numbers"),
    "odd order": (lambda n, d: b"pdp" if "byteorder" in n else d, "unknown byte order"),
    "a cut pickle": (lambda n, d: d[:-9] if n.endswith(".pkl") else d, "cut short after"),
    "a wide view": (lambda n, d: d.replace(b"K\x06\x85", b"K\x07\x85"), "does not fit its storage"),
}


@pytest.mark.parametrize(("change", "what"), CHANGES.values(), ids=CHANGES)
def test_an_archive_whose_parts_contradict_each_other_is_refused(tmp_path, change, what):
    path = rewrite(saved(tmp_path / "x.pth"), change)
    with pytest.raises(
        InputError, match=rf"^expected a file of torch.save in {path}, got .*{what}"
    ):
        read(path)


def test_compressed_archives_are_refused(tmp_path: Path):
    content = torch.zeros(10**4)
    path = rewrite(saved(tmp_path / "x.pth", content), lambda n, d: d, compression=8)
    with pytest.raises(InputError, match=r"more than its own size|compressed"):
        read(path)


def test_cut_files_say_so_wherever_they_end(tmp_path: Path):
    whole = saved(tmp_path / "x.pth").read_bytes()
    for end in (4, 30, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "x.pth").write_bytes(whole[:end])
        with pytest.raises(InputError, match="cut short or damaged"):
            read(tmp_path / "x.pth")


def test_changed_bytes_are_refused_or_mean_something_but_never_fail_otherwise(tmp_path: Path):
    path = saved(tmp_path / "x.pth", {"args": argparse.Namespace(a=1), "x": torch.ones(3)})
    refusals = []
    for data in changed(path.read_bytes()):
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in line for line in refusals)


def test_missing_files_folders_and_files_of_another_kind_are_refused(tmp_path: Path):
    (tmp_path / "empty").touch()
    (tmp_path / "page").write_bytes(b"<html>")
    (tmp_path / "zeros").write_bytes(b"PK\x03\x04" + bytes(99))
    torch.save(torch.ones(3), tmp_path / "old", _use_new_zipfile_serialization=False)
    for name, what in (
        *(("no", "Error; check the path"), (".", "Error; check the path")),
        *(("empty", "an empty file"), ("page", "no zip archive")),
        *(("zeros", "cut short or damaged"), ("old", r"before PyTorch 1\.6")),
    ):
        with pytest.raises(InputError, match=what):
            read(tmp_path / name)


TRAPS = {
    "posix.system": Call(os.system, "touch executed"),
    "eval": Call(eval, "open('executed', 'w')"),
    "exec": Call(exec, "open('executed', 'w')"),
    "getattr": Call(getattr, "x", "upper"),
    "Popen": Call(subprocess.Popen, ["touch", "executed"]),
    "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
    "_rebuild_tensor_v2 with unknown": Call(torch._utils._rebuild_tensor_v2, 1),
    "OrderedDict with unknown": Call(OrderedDict, [["a", 1]]),
    "torch.BoolStorage": torch.ones(2, dtype=torch.bool),
    "_rebuild_sparse_tensor": torch.eye(2).to_sparse(),
}


@pytest.mark.parametrize(("name", "trap"), TRAPS.items(), ids=TRAPS)
def test_what_a_file_may_not_ask_for_is_refused_by_name_and_does_not_run(
    tmp_path: Path, convert, name: str, trap: object
):
    path = saved(tmp_path / "x.pth", {"args": argparse.Namespace(a=trap), "model": {}, "ema": {}})
    with pytest.raises(InputError, match=name):
        read(path)
    refused(convert("get_checkpoint", path, tmp_path / "out"), name)
    untouched(tmp_path)
