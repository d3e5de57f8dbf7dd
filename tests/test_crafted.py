"""Crafted manifests, records and files: one line and no shard, never a traceback or a hang."""

import json
import os
from pathlib import Path

import pytest

from data.manifest import count_shards, read_manifest, read_record, record_path, tar_path
from data.reader import read_shard
from data.verify import find_damage
from get.errors import InputError

from .problems import as_users_run_it as as_users_run_it
from .shards import PAIRS, order, read, write_pairs

BAD = [
    *(("pairs_per_shard", bad) for bad in (0, -1, 10**18, "16", None, 16.0, [16], True)),
    *(("num_classes", bad) for bad in ("10", 10**12, 0, 1.5, True)),
    *(("pack", bad) for bad in ("x", 0, 10**18)),
    *(("image_shape", bad) for bad in ("abc", [1, 4], [1, 4, 4.0], [0, 4, 4], [1, 10**9, 4])),
    *(("seed", bad) for bad in (-1, 2**64, "0")),
    *(("image_format", bad) for bad in ("jpg", None)),
    *(("sampler", bad) for bad in ([], "heun")),
    *(("teacher", bad) for bad in (None, ["x"])),
    *(("vae", 7), ("execution", None), ("evaluations", -1), ("teacher_batch_size", 0)),
    *(("schema", bad) for bad in ("\x1b[2J", [[[1]]], 10**20, None)),
    ("more", 1),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", 2)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("name", "bad"), BAD)
def test_a_manifest_with_a_value_that_cannot_be_is_refused_in_one_plain_line(pairs, name, bad):
    manifest = json.loads((pairs / "manifest.json").read_text()) | {name: bad}
    (pairs / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="expected") as raised:
        read_manifest(pairs)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


TEXTS = [
    "[" * 100_000,
    '{"count": ' + "9" * 5000 + "}",
    "{}",
    "[1]",
    '"x"',
    "\0",
    "nan",
    "1" * 2**21,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_json_that_is_no_manifest_or_record_is_refused_by_name(pairs, text):
    (record_path(pairs, 1)).write_text(text)
    with pytest.raises(InputError, match=r"pairs-000001\.json"):
        read_record(pairs, 1)
    assert find_damage(pairs, 1, read_manifest(pairs)) == "a record that cannot be read"
    (pairs / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json|expected schema 1"):
        read_manifest(pairs)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("count", bad) for bad in ("6", -6, 10**20, True, None)),
        *(("bytes", bad) for bad in (-1, 10**20, 1.5, "x")),
        *(("sha256", 1), ("sha256", None), ("first_index", "6"), ("manifest", 1), ("more", 1)),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_record_with_a_value_that_cannot_be_is_refused_by_name(pairs, name, bad):
    record = json.loads(record_path(pairs, 1).read_text()) | {name: bad}
    record_path(pairs, 1).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"pairs-000001\.json"):
        read_shard(pairs, 1)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [a_pipe, Path.mkdir])
@pytest.mark.parametrize("which", [tar_path, record_path])
def test_what_is_no_regular_file_is_no_shard_and_nothing_waits_for_it(pairs, make, which):
    which(pairs, 1).unlink()
    make(which(pairs, 1))
    with pytest.raises(InputError, match=r"pairs-000001\.(tar|json)"):
        read(order(pairs, shards=2, streams=1, batch_size=2 * PAIRS), 1)
    assert find_damage(pairs, 1, read_manifest(pairs))


def test_files_with_names_like_shards_are_not_counted(pairs):
    for stray in ("pairs-000001 (1).json", "pairs-backup.json", "pairs-abcdef.json"):
        (pairs / stray).touch()
    assert count_shards(pairs) == 2
