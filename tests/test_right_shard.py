"""A shard that is whole but not the right one: found without a teacher, never trained on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data.manifest import (
    DamagedShard,
    Manifest,
    read_manifest,
    read_record,
    record_path,
    tar_path,
)
from data.pairs import Pairs
from data.reader import batches, read_shard
from data.verify import find_damage
from data.writer import write_given

from .problems import Softsign
from .shards import PAIRS, order, write_pairs

SEED = "that are not those of seed 0"


def copy(source: Path, shard: int, target: Path, to: int) -> None:
    for path in (tar_path, record_path):
        shutil.copy(path(source, shard), path(target, to))


def copied(pairs: Path) -> None:
    copy(pairs, 0, pairs, 1)


def of_other(**changes: object) -> Callable[[Path], None]:
    """Return what copies a shard from a data set that differs in one thing."""

    def change(pairs: Path) -> None:
        teacher = Softsign()
        for name, value in changes.items():
            setattr(teacher, name, value)
        copy(write_pairs(pairs / "other", 2, teacher=teacher), 1, pairs, 1)

    return change


def unsigned(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what does the same, with a record of an earlier version, that names no data set."""

    def unsign(pairs: Path) -> None:
        change(pairs)
        record = json.loads(record_path(pairs, 1).read_text())
        del record["manifest"]
        record_path(pairs, 1).write_text(json.dumps(record))

    return unsign


NOT_RIGHT: dict[str, tuple[Callable[[Path], None], str]] = {
    "another shard": (copied, "its record says 6 pairs from 0"),
    "another teacher": (of_other(fingerprint="another"), "its record is that of another data set"),
    "no labels": (of_other(num_classes=None), "its record is that of another data set"),
    "no labels, old": (unsigned(of_other(num_classes=None)), "members image.npy, latent.npy"),
    "more classes, old": (unsigned(of_other(num_classes=99)), "labels outside 0 to 9"),
    "shape, old": (unsigned(of_other(image_shape=(3, 4, 4))), "instead of"),
}


@pytest.mark.parametrize(("change", "shown"), NOT_RIGHT.values(), ids=NOT_RIGHT)
def test_a_shard_that_is_not_the_right_one_is_found_and_not_trained_on(tmp_path, change, shown):
    pairs = write_pairs(tmp_path, 2)
    change(pairs)
    assert shown in (find_damage(pairs, 1, read_manifest(pairs)) or "")
    with pytest.raises(DamagedShard, match=shown):
        read_shard(pairs, 1)
    chosen = order(pairs, shards=2, streams=1, batch_size=2 * PAIRS)
    skipped: dict[int, str] = {}
    list(islice(batches(chosen, damaged=lambda n, text: skipped.update({n: text})), 3))
    assert skipped.keys() == {1}
    assert shown in skipped[1]


def swapped(pairs: Pairs) -> Pairs:
    return Pairs(pairs.noise[[1, 0, *range(2, PAIRS)]], pairs.images, pairs.labels)


def repeated(pairs: Pairs) -> Pairs:
    return pairs.take(slice(0, 1)).take(slice(0, 1)).cat([pairs.take(slice(0, 1))] * PAIRS)


def relabelled(pairs: Pairs) -> Pairs:
    assert pairs.labels is not None
    return Pairs(pairs.noise, pairs.images, (pairs.labels + 1) % 10)


def other_seed(pairs: Pairs) -> Pairs:
    return Pairs(pairs.noise.flip(3), pairs.images, pairs.labels)


@pytest.mark.parametrize(
    ("change", "count"), [(swapped, 2), (repeated, 5), (relabelled, 6), (other_seed, 6)]
)
def test_noise_and_labels_other_than_those_of_the_seed_are_found_without_a_teacher(
    tmp_path, change, count
):
    pairs = write_pairs(tmp_path, 2)
    manifest = read_manifest(pairs)
    changed = change(read_shard(pairs, 1))
    record_path(pairs, 1).unlink()
    write_given(pairs, 1, manifest, changed)
    assert f"{count} pairs, " in (found := find_damage(pairs, 1, manifest) or "")
    assert SEED in found
    assert find_damage(pairs, 0, manifest) is None


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"num_classes": 90}, {"teacher": "x"}, {"evaluations": 9}]
)
def test_a_manifest_that_was_changed_fits_no_shard(tmp_path, changes):
    pairs = write_pairs(tmp_path, 1)
    manifest = json.loads((pairs / "manifest.json").read_text()) | changes
    (pairs / "manifest.json").write_text(json.dumps(manifest))
    assert "another data set" in (find_damage(pairs, 0, read_manifest(pairs)) or "")


def test_the_identity_of_a_data_set_is_golden_and_depends_on_no_default_and_no_place() -> None:
    manifest = Manifest(
        teacher="softsign",
        sampler={"steps": 2},
        evaluations=3,
        seed=0,
        teacher_batch_size=4,
        image_shape=(1, 4, 4),
        num_classes=10,
        image_format="npy32",
        pairs_per_shard=6,
    )
    assert manifest.identity == "4dc33ae62f33bcd2"
    assert replace(manifest, vae="moved").identity == manifest.identity
    assert "imported" not in manifest.as_json()
    others: tuple[dict[str, Any], ...] = (
        *({"pack": 2}, {"imported": True}, {"execution": {"compile": True}}, {"seed": 1}),
    )
    assert len({replace(manifest, **other).identity for other in others} | {manifest.identity}) == 5


def test_a_record_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, 2)
    unsigned(lambda pairs: None)(pairs)
    record = read_record(pairs, 1)
    assert record is not None
    assert record.manifest is None
    assert find_damage(pairs, 1, read_manifest(pairs)) is None
