"""Pairs of locuslab/get become a data set that trains, or are refused with nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data import locuslab_pairs
from data.manifest import count_shards, read_manifest
from data.reader import read_shard
from data.verify import find_damage

from .locuslab_files import _nothing_was_executed as _nothing_was_executed
from .locuslab_files import convert as convert
from .locuslab_files import old_pairs, refused, untouched
from .shards import order, read

COUNTS = {"000000010.pkl": 5, "000000002.pkl": 3, "000000100.pkl": 9}  # not in order, uneven


@pytest.mark.parametrize("pack", [1, 3])
@pytest.mark.parametrize("form", ["npy", "npy32", "png"])
@pytest.mark.parametrize("classes", [None, 10], ids=["unconditional", "conditional"])
def test_old_pairs_become_a_whole_data_set(tmp_path, convert, classes, form, pack):
    noise, images, labels = old_pairs(tmp_path / "old", COUNTS, classes)
    out = tmp_path / "new" / "pairs"
    given = "--pairs_per_shard", 4, "--image_format", form, "--pack", pack
    result = convert("get_pairs", tmp_path / "old", out, *given)
    assert result.code == 0, result.err
    assert f"{out}: 16 pairs in 4 shards of 3 files; 1 more do not fill a shard" in result.out
    assert [p.name for p in out.parent.iterdir()] == ["pairs"]
    manifest = read_manifest(out)
    assert (manifest.num_classes, manifest.image_shape) == (classes, (3, 8, 8))
    assert (manifest.sampler, manifest.evaluations) == ({"steps": 18}, 35)
    assert len(manifest.teacher) == 64
    assert count_shards(out) == 4
    for i in range(4):
        assert find_damage(out, i, manifest) is None
        found, at = read_shard(out, i), slice(4 * i, 4 * i + 4)
        assert torch.equal(found.noise, noise[at])
        if form == "png":
            assert found.images.dtype == torch.uint8
        else:
            kept = {"npy": torch.float16, "npy32": torch.float32}[form]
            assert torch.equal(found.images, images[at].to(kept))
        assert (found.labels is None) == (classes is None)
        assert found.labels is None or torch.equal(found.labels, labels[at])


def test_training_reads_imported_pairs_and_the_hash_tells_sources_apart(tmp_path: Path, convert):
    hashes = set()
    for name, counts in {"a": {"1.pkl": 8}, "b": {"1.pkl": 4, "2.pkl": 4}}.items():
        old_pairs(tmp_path / name, counts)
        convert("get_pairs", tmp_path / name, tmp_path / f"new-{name}", "--pairs_per_shard", 4)
        hashes.add(read_manifest(tmp_path / f"new-{name}").teacher)
    assert len(hashes) == 2
    new = order(tmp_path / "new-a", shards=2, pairs_per_shard=4, streams=2, batch_size=4)
    labels = [label for batch in read(new, 2) for label in vars(batch)["labels"].tolist()]
    assert sorted(labels) == list(range(8))


def resave(path: Path, change: Callable[[Any], object]) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path)  # noqa: TID251  of our own making


LATENT, IMAGE = Path("latent/2.pkl"), Path("image/2.pkl")
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image file": (lambda f: (f / IMAGE).unlink(), "no image/2.pkl"),
    "no latent file": (lambda f: (f / LATENT).unlink(), "no latent/2.pkl"),
    "name": (lambda f: [(f / p).rename(f / p.parent / "x.pkl") for p in (LATENT, IMAGE)], "x.pkl"),
    "fewer images": (lambda f: resave(f / IMAGE, lambda x: x[1:]), "(3, 3, 8, 8)"),
    "soft labels": (lambda f: resave(f / LATENT, lambda x: [x[0], x[1] / 2]), "one-hot"),
    "two labels": (lambda f: resave(f / LATENT, lambda x: [x[0], x[1] * 0 + 1]), "one-hot"),
    "no label": (lambda f: resave(f / LATENT, lambda x: [x[0], x[1] * 0]), "one-hot"),
    "indices": (lambda f: resave(f / LATENT, lambda x: [x[0], x[1].argmax(1)]), "one-hot"),
    "fewer labels": (lambda f: resave(f / LATENT, lambda x: [x[0], x[1][1:]]), "4 rows"),
    "three parts": (lambda f: resave(f / LATENT, lambda x: [*x, x[1]]), "list of noise"),
    "unlabelled after labelled": (lambda f: resave(f / LATENT, lambda x: x[0]), "classes 10"),
    "classes": (lambda f: resave(f / LATENT, lambda x: [x[0], x[1][:, :9]]), "and 9;"),
    "double noise": (lambda f: resave(f / LATENT, lambda x: [x[0].double(), x[1]]), "float64"),
    "infinite noise": (lambda f: resave(f / LATENT, lambda x: [x[0] / 0, x[1]]), "finite"),
    "8-bit scale": (lambda f: resave(f / IMAGE, lambda x: x * 127.5 + 128), "about [-1, 1]"),
    "nan": (lambda f: resave(f / IMAGE, lambda x: x * torch.nan), "finite"),
    "no tensor": (lambda f: resave(f / IMAGE, lambda x: {"x": x}), "got dict"),
    "cut": (lambda f: (f / IMAGE).write_bytes((f / IMAGE).read_bytes()[:99]), "cut short"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "what"), DAMAGED.values(), ids=DAMAGED)
def test_pairs_that_are_not_whole_are_refused_and_nothing_is_left(tmp_path, convert, change, what):
    old_pairs(tmp_path / "old", {"1.pkl": 4, "2.pkl": 4})
    change(tmp_path / "old")
    refused(convert("get_pairs", tmp_path / "old", tmp_path / "out", "--pairs_per_shard", 2), what)
    untouched(tmp_path)


def test_too_few_pairs_no_pairs_an_existing_folder_and_bad_flags_are_refused(tmp_path, convert):
    old, out = tmp_path / "old", tmp_path / "out"
    refused(convert("get_pairs", old, out), "latent/*.pkl and image/*.pkl")
    old_pairs(old, {"1.pkl": 4})
    refused(convert("get_pairs", old, out), "at least 1024 pairs", "got 4")
    assert "pack above 0" in convert("get_pairs", old, out, "--pack", 0).err
    untouched(tmp_path)
    refused(convert("get_pairs", old, old), "expected nothing at")


def test_png_wants_one_or_three_channels(tmp_path: Path, convert):
    for kind in ("latent", "image"):
        (tmp_path / "old" / kind).mkdir(parents=True)
        torch.save(torch.zeros(2, 4, 8, 8), tmp_path / "old" / kind / "1.pkl")
    given = tmp_path / "old", tmp_path / "out", "--pairs_per_shard", 2
    refused(convert("get_pairs", *given, "--image_format", "png"), "1 or 3 channels")
    untouched(tmp_path)
    assert convert("get_pairs", *given).code == 0


def test_ctrl_c_leaves_nothing(tmp_path: Path, convert, monkeypatch):
    old_pairs(tmp_path / "old", {"1.pkl": 4, "2.pkl": 4})
    writes = locuslab_pairs.write_given

    def interrupted(folder: Path, shard: int, *rest: Any) -> object:
        if shard == 1:
            raise KeyboardInterrupt
        return writes(folder, shard, *rest)

    monkeypatch.setattr(locuslab_pairs, "write_given", interrupted)
    result = convert("get_pairs", tmp_path / "old", tmp_path / "out", "--pairs_per_shard", 4)
    assert result.code == 130
    untouched(tmp_path)
