"""Files and folders appear complete under their name or not at all."""

from collections.abc import Callable
from contextlib import suppress
from errno import EFBIG
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import pytest
import torch
from safetensors.torch import save_file

from data.files import check_local, delete_leftovers, hidden_path, new_file, new_folder, read_json
from get.errors import InputError


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_what_breaks_while_being_written_leaves_what_was_there(new, tmp_path):
    def write(where: Path, text: str) -> None:
        (where / "a" if where.is_dir() else where).write_text(text)

    for before in ([], ["thing"]):
        with suppress(KeyboardInterrupt), new(tmp_path / "thing") as path:
            write(path, "torn")
            raise KeyboardInterrupt
        assert [p.name for p in tmp_path.iterdir()] == before
        with new(tmp_path / "thing") as path:
            write(path, "complete")
            assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == before
    thing = tmp_path / "thing"
    assert (thing / "a" if thing.is_dir() else thing).read_text() == "complete"


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_full_disk_is_an_oserror_with_a_name_whoever_writes(new, tmp_path):
    def python(path: Path) -> None:
        path.write_bytes(bytes(10_000))

    def safetensors(path: Path) -> None:
        save_file({"x": torch.zeros(10_000)}, path)

    def on_a_full_disk(write: Callable[[Path], None]) -> None:
        with new(tmp_path / "thing") as path:
            setrlimit(RLIMIT_FSIZE, (1000, before[1]))
            try:
                write(path / "x" if path.is_dir() else path)
            finally:
                setrlimit(RLIMIT_FSIZE, before)

    before = getrlimit(RLIMIT_FSIZE)
    for write in (python, safetensors):
        with pytest.raises(OSError, match="File too large") as told:
            on_a_full_disk(write)
        assert (told.value.errno, told.value.filename) == (EFBIG, str(tmp_path / "thing"))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b'{"torn": ', b"\xff\xfe", None])
def test_unreadable_json_is_bad_input(content, tmp_path):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"expected JSON in .*x\.json"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("s3://key:SECRET@bucket/x", "s3://...@bucket/x"),
        ("https://host/x?token=SECRET", "https://host/x?..."),
        ("simplecache::memory://x", "simplecache::memory://x"),
        ("pipe:cat {}", "pipe:cat {}"),
    ],
)
def test_an_address_is_no_local_path_and_is_shown_without_secrets(path, shown):
    with pytest.raises(InputError) as refused:
        check_local(Path(path), "output_dir")
    assert f"got the address {shown}; use" in str(refused.value)


@pytest.mark.parametrize("path", ["runs/12:30", "run:1", "/a/s3:/x", "C:/x", "."])
def test_a_local_path_may_have_colons(path):
    check_local(Path(path), "output_dir")


def test_leftovers_of_killed_writers_are_deleted_and_nothing_else(tmp_path):
    for parent in (tmp_path, tmp_path / "folder"):
        parent.mkdir(exist_ok=True)
        hidden_path(parent / "x.json").write_text("{")
        torn = hidden_path(parent / "checkpoint")
        torn.mkdir()
        hidden_path(torn / "state.json").write_text("{")
        for kept in ("x.json", ".x.json", ".x.tmp", ".thesis.last.tmp"):
            (parent / kept).touch()
    delete_leftovers(tmp_path)
    for parent in (tmp_path, tmp_path / "folder"):
        names = {path.name for path in parent.iterdir()} - {"folder"}
        assert names == {"x.json", ".x.json", ".x.tmp", ".thesis.last.tmp"}
