"""The files of a data set: manifest and records, made once, compared and counted."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from data.data_set import open_data_set
from data.manifest import (
    Manifest,
    count_shards,
    list_shards,
    read_manifest,
    read_record,
    record_path,
)
from get.errors import InputError

from .problems import Softsign
from .shards import contents, manifest_of, write_pairs

MANIFEST = manifest_of(Softsign())


def test_png_is_refused_for_latents_of_four_channels() -> None:
    with pytest.raises(InputError, match="expected 1 or 3 channels for image_format png, got 4"):
        manifest_of(Softsign(channels=4), "png")


@pytest.mark.parametrize("name", ["run.json", "model_index.json", "sample.json"])
def test_pairs_are_not_mixed_with_what_another_command_made(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"got another command's result .{name}.; choose another"):
        open_data_set(tmp_path, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_of_many_writers_one_creates_the_manifest_and_the_others_compare(tmp_path: Path) -> None:
    offers = [replace(MANIFEST, seed=i // 4) for i in range(32)]

    def offer(manifest: Manifest) -> bool:
        try:
            open_data_set(tmp_path, manifest)
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = list(pool.map(offer, offers))
    winner = read_manifest(tmp_path)
    assert accepted == [manifest == winner for manifest in offers]
    assert list(contents(tmp_path)) == ["manifest.json"]


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        (replace(MANIFEST, teacher="other"), "teacher was 'softsign', is 'other'"),
        (replace(MANIFEST, image_format="png"), "image_format was 'npy32', is 'png'"),
        (replace(MANIFEST, sampler={"steps": 9}), "sampler was {'steps': 2}, is {'steps': 9}"),
        (
            replace(MANIFEST, seed=1, num_classes=None),
            "seed was 0, is 1; num_classes was 10, is None",
        ),
    ],
)
def test_other_settings_are_refused_showing_the_difference(tmp_path, other, shown):
    before = contents(write_pairs(tmp_path, 1))
    with pytest.raises(InputError) as raised:
        open_data_set(tmp_path, other)
    assert f"got: {shown};" in str(raised.value)
    assert contents(tmp_path) == before


TORN = ["{", '{"schema": 1, "seed": 0}', "[1]", "\xff", ""]


@pytest.mark.parametrize("text", ['{"schema": 2}', *TORN], ids=ascii)
def test_another_schema_or_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin1")
    shown = "pairs in {}, got no readable" if text in TORN else "schema 1 in {}, got 2"
    with pytest.raises(InputError, match=f"expected {shown.format(tmp_path)}"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"count": 6}'])
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    record_path(tmp_path, 3).write_text(text)
    with pytest.raises(InputError, match=r"pairs-000003\.json"):
        read_record(tmp_path, 3)


def test_shards_above_a_million_are_counted(tmp_path: Path) -> None:
    for shard in (999_999, 1_000_000, 12_345_678):
        record_path(tmp_path, shard).touch()
    for stray in ("pairs-0000001.json", "pairs-00001.json", "pairs-000001.json.part"):
        (tmp_path / stray).touch()
    assert list_shards(tmp_path) == [999_999, 1_000_000, 12_345_678]


def test_a_gap_is_refused(tmp_path: Path) -> None:
    record_path(write_pairs(tmp_path, 4), 2).unlink()
    with pytest.raises(InputError, match=r"expected shard 2 .* although shard 3 is finished"):
        count_shards(tmp_path)
