"""Thousands of damages, accidental and deliberate: the same pairs, or a line that names the damage.

A case is decided by its number, which a failing one names with what was done. Only images whose
records were made to fit can be wrong unnoticed: it takes the teacher (`verify_pairs --deep`) to see
that.
"""

import random
import shutil
import time
import tracemalloc
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from data.manifest import list_shards, read_manifest, record_path, tar_path
from data.pairs import Pairs
from data.reader import read_shard
from data.verify import find_damage
from data.writer import write_shards
from get.errors import InputError
from pipeline import verify_pairs
from pipeline.cli import Failed

from .fuzz import DAMAGES, fit_records
from .problems import Softsign
from .problems import as_users_run_it as as_users_run_it
from .shards import contents, write_pairs

SHARDS = 3
SECONDS, BYTES = 20.0, 2**25  # that a case may take
FORMS: dict[str, dict] = {
    "png": {"form": "png"},
    "npy": {"form": "npy", "teacher": Softsign(channels=3)},
    "npy32": {"form": "npy32", "teacher": Softsign(num_classes=None)},
    "packed": {"form": "png", "pack": 4},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Pairs]]]:
    """Undamaged data sets and their pairs."""
    found = {}
    for name, options in FORMS.items():
        folder = write_pairs(tmp_path_factory.mktemp(name) / "pairs", SHARDS, **options)
        found[name] = folder, [read_shard(folder, shard) for shard in range(SHARDS)]
    return found


def plain(error: InputError) -> None:
    """Check that a message is one printable line."""
    assert str(error).isprintable()
    assert 20 < len(str(error)) < 1000


def differing(pairs: Pairs, expected: Pairs) -> set[str]:
    """Return which parts of pairs differ."""
    found = set()
    for name, value in vars(expected).items():
        other = getattr(pairs, name)
        if value is None or other is None:
            found |= {name} if value is not other else set()
        elif value.dtype != other.dtype or not torch.equal(value, other):
            found.add(name)
    return found


def check(seed: int, whole: dict[str, tuple[Path, list[Pairs]]], folder: Path) -> str:
    """Damage a copy, read and verify it, write it again; return what became of it."""
    rng = random.Random(seed)
    form = rng.choice(list(whole))
    source, expected = whole[form]
    shutil.copytree(source, folder)
    damage, shard, fitted = rng.choice(DAMAGES), rng.randrange(SHARDS), rng.random() < 0.5
    done = damage(rng, folder, shard)
    if fitted:
        fit_records(folder, SHARDS)
    try:
        return judged(folder, source, expected, fitted, harmless=done == "nothing")
    except BaseException as error:
        error.add_note(f"case {seed}: {form}, shard {shard}, {done}, records fit: {fitted}")
        raise


def judged(folder: Path, source: Path, expected: list[Pairs], fitted: bool, harmless: bool) -> str:
    """Return what became of a damaged data set; fail where wrong pairs would be trained on."""
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        plain(error)
        return "refused"
    outcomes, damaged = set(), []
    for shard in range(SHARDS):
        try:
            named = find_damage(folder, shard, manifest)
        except InputError as error:
            plain(error)
            named = str(error)
        assert named is None or named.isprintable()
        if named is not None:
            damaged.append(shard)
        try:
            wrong = differing(read_shard(folder, shard, manifest), expected[shard])
        except InputError as error:
            plain(error)
            wrong = None
        if wrong is None:  # training stops, so verifying must say why
            assert named is not None
            continue
        # Only who made the records fit gets wrong numbers read, and of those images unnoticed.
        assert fitted or not wrong
        assert named is not None or wrong <= {"images"}
        outcomes |= wrong
    assert not (harmless and damaged)
    # The last shards do not exist, rather than being damaged, if they have no records.
    known = range(max(list_shards(folder), default=SHARDS) + 1)
    with pytest.raises((InputError, Failed)) if set(known) & set(damaged) else nullcontext():
        verify_pairs.main(verify_pairs.VerifyConfig(pairs=str(folder)))
    if damaged and manifest == read_manifest(source):
        written_again(folder, source, damaged)
    return "named" if damaged else "images of another" if outcomes else "the same"


def written_again(folder: Path, source: Path, damaged: list[int]) -> None:
    """Do as the message says, and compare."""
    for shard in damaged:
        for path in (tar_path(folder, shard), record_path(folder, shard)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    manifest = read_manifest(source)
    teacher = Softsign(channels=manifest.image_shape[0], num_classes=manifest.num_classes)
    write_shards(folder, damaged, teacher, manifest)
    names = {
        path.name
        for shard in damaged
        for path in (tar_path(source, shard), record_path(source, shard))
    }
    assert {k: v for k, v in contents(folder).items() if k in names} == {
        k: v for k, v in contents(source).items() if k in names
    }


def run(cases: range, whole: dict[str, tuple[Path, list[Pairs]]], tmp_path: Path) -> Counter[str]:
    """Check cases within bounds of time and memory; return how often what became of them."""
    found: Counter[str] = Counter()
    tracemalloc.start()
    for seed in cases:
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
        found[check(seed, whole, tmp_path / str(seed))] += 1
        shutil.rmtree(tmp_path / str(seed))
        assert time.perf_counter() - began < SECONDS, seed
        assert tracemalloc.get_traced_memory()[1] - before < BYTES, seed
    tracemalloc.stop()
    return found


@pytest.mark.usefixtures("as_users_run_it")
def test_no_damage_passes_as_whole_or_ends_in_a_traceback(whole, tmp_path):
    assert run(range(120), whole, tmp_path).keys() >= {"refused", "named", "the same"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("as_users_run_it")
def test_no_damage_of_thousands_passes_as_whole_or_ends_in_a_traceback(whole, tmp_path):
    found = run(range(120, 5120), whole, tmp_path)
    assert found["images of another"] < 200
