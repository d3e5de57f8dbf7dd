"""What locuslab/get has left: read as data, refused by name, converted, sampled, trained on."""

import argparse
import json
import os
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.manifest import count_shards, read_manifest
from data.reader import Order, batches, read_shard
from data.torch_file import Namespace, StoredTensor, open_torch_file
from data.verify import find_damage
from get.ema import EMA
from get.errors import InputError
from get.losses import IterateLoss, geometric_weights
from get.models import GET, SIZES, ViT, build
from get.models.locuslab import from_reference
from get.pipeline_get import GETPipeline
from pipeline import cli, convert_get
from pipeline.convert import CONVERSIONS, main
from pipeline.jobs.state import start_from
from pipeline.jobs.students import load_pipeline
from pipeline.recipes import STUDENTS
from pipeline.train import main as train

from .edm_files import Call

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL: dict[str, Any] = {
    "model": "GET-Tiny/2",
    "input_size": 8,
    "cond": False,
    "num_classes": 10,
    "grad": [6],
    "sup_gap": 1,
    "f_solver": "fixed_point_iter",
    "f_max_iter": 0,
    "eval_f_max_iter": 6,
    "eval_factor": 1.0,
    "norm_type": "none",
    "ift": False,
    "mem": False,
    "lr": 1e-4,
    "resume": None,
}


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture(autouse=True)
def _nothing_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def convert(monkeypatch, capsys) -> Callable[..., Result]:
    """Return a function that runs the script in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.run(main, CONVERSIONS)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


def refused(result: Result, *what: str) -> None:
    """Check that a script said in one line what is wrong, with exit code 2."""
    assert result.code == 2
    line = result.err.splitlines()[-1]
    assert line.startswith("convert: expected ")
    assert all(part in line for part in what), line


def untouched(tmp_path: Path) -> None:
    """Check that nothing was left at OUT or beside it."""
    assert not [p.name for p in tmp_path.iterdir() if "out" in p.name]


# ---------------------------------------------------------------------- files of torch.save


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


def saved(path: Path, content: object = None) -> Path:
    torch.save(torch.arange(6.0) if content is None else content, path)
    return path


def swapped(name: str, data: bytes) -> bytes:
    if name.endswith("/byteorder"):
        return b"big"
    return np.frombuffer(data, ">f4").astype("<f4").tobytes() if "/data/" in name else data


def test_the_byte_order_of_the_writer_is_honoured(tmp_path: Path):
    path = rewrite(saved(tmp_path / "x.pth"), swapped)
    assert read(path).tolist() == [0, 1, 2, 3, 4, 5]


def test_files_without_a_byte_order_are_little_endian(tmp_path: Path):
    path = rewrite(saved(tmp_path / "x.pth"), lambda n, d: None if "byteorder" in n else d)
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
def test_an_archive_whose_parts_contradict_each_other_is_refused(
    tmp_path: Path, change: Callable[[str, bytes], bytes | None], what: str
):
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
    whole, chance, refusals = path.read_bytes(), random.Random(0), []
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in line for line in refusals)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"<html>", "no zip archive"),
        (b"PK\x03\x04" + bytes(99), "cut short or damaged"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, data: bytes, what: str):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match=what):
        read(tmp_path / "x")


def test_missing_files_folders_and_the_old_format_are_refused(tmp_path: Path):
    for path in (tmp_path / "no", tmp_path):
        with pytest.raises(InputError, match=r"Error; check the path"):
            read(path)
    torch.save(torch.ones(3), tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before PyTorch 1\.6"):
        read(tmp_path / "old")


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


# ---------------------------------------------------------------------- pairs


def old_pairs(folder: Path, counts: dict[str, int], classes: int | None = 10) -> list[Tensor]:
    """Write pairs as locuslab/get does; return noise, images and labels in file order."""
    generator = torch.Generator().manual_seed(1)
    for kind in ("latent", "image"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    made: list[tuple[Any, ...]] = []
    for name, n in counts.items():
        noise, labels = torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 10
        images = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64) * 2.2 - 1.1
        images = images if classes is None else images.float()
        hot = torch.nn.functional.one_hot(labels, 10).float()
        torch.save(noise if classes is None else [noise, hot], folder / "latent" / name)
        torch.save(images, folder / "image" / name)
        made.append((int(name.split(".")[0]), noise, images, labels))
    made.sort(key=lambda row: row[0])
    return [torch.cat(parts) for parts in zip(*(row[1:] for row in made), strict=True)]


COUNTS = {"000000010.pkl": 5, "000000002.pkl": 3, "000000100.pkl": 9}  # not in order, uneven


@pytest.mark.parametrize("pack", [1, 3])
@pytest.mark.parametrize("form", ["npy", "npy32", "png"])
@pytest.mark.parametrize("classes", [None, 10], ids=["unconditional", "conditional"])
def test_old_pairs_become_a_whole_data_set(
    tmp_path: Path, convert, classes: int | None, form: str, pack: int
):
    noise, images, labels = old_pairs(tmp_path / "old", COUNTS, classes)
    out = tmp_path / "new" / "pairs"
    given = "--pairs_per_shard", 4, "--image_format", form, "--pack", pack
    result = convert("get_pairs", tmp_path / "old", out, *given)
    assert result.code == 0, result.err
    assert f"{out}: 16 pairs in 4 shards of 3 files; 1 more do not fill a shard" in result.out
    assert [p.name for p in out.parent.iterdir()] == ["pairs"]
    manifest = read_manifest(out)
    assert (manifest.num_classes, manifest.image_shape) == (classes, (3, 8, 8))
    assert (manifest.sampler, manifest.evaluations, len(manifest.teacher)) == (
        {"steps": 18},
        35,
        64,
    )
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
    order = Order(
        source=tmp_path / "new-a", shards=2, pairs_per_shard=4, seed=0, streams=2, batch_size=4
    )
    loader = batches(order)
    labels = torch.cat(
        [part.labels for part in (next(loader), next(loader)) if part.labels is not None]
    )
    assert sorted(labels.tolist()) == list(range(8))


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
def test_pairs_that_are_not_whole_are_refused_and_nothing_is_left(
    tmp_path: Path, convert, change: Callable[[Path], object], what: str
):
    old_pairs(tmp_path / "old", {"1.pkl": 4, "2.pkl": 4})
    change(tmp_path / "old")
    refused(convert("get_pairs", tmp_path / "old", tmp_path / "out", "--pairs_per_shard", 2), what)
    untouched(tmp_path)


def test_too_few_pairs_no_pairs_an_existing_folder_and_bad_flags_are_refused(
    tmp_path: Path, convert
):
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
    writes = convert_get.write_given

    def interrupted(folder: Path, shard: int, *rest: Any) -> object:
        if shard == 1:
            raise KeyboardInterrupt
        return writes(folder, shard, *rest)

    monkeypatch.setattr(convert_get, "write_given", interrupted)
    result = convert("get_pairs", tmp_path / "old", tmp_path / "out", "--pairs_per_shard", 4)
    assert result.code == 130
    untouched(tmp_path)


# ---------------------------------------------------------------------- checkpoints


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def official(
    path: Path, record: dict[str, Tensor], opt: object = None, **args: Any
) -> dict[str, Tensor]:
    """Write a checkpoint as locuslab/get does, the recorded weights as its average."""
    keys = [k.removeprefix("state.") for k in record if k.startswith("state.")]
    keys.sort(key=lambda k: k != "pos_embed")  # first there
    ema = OrderedDict((k, record[f"state.{k}"]) for k in keys)
    model = OrderedDict((k, v if k == "pos_embed" else v + 1) for k, v in ema.items())
    given = OFFICIAL | {"cond": "labels" in record} | args
    namespace = argparse.Namespace(**given)
    content = {"args": namespace, "model": model, "ema": ema, "opt": opt or {"state": {}}}
    torch.save(content, path)
    return ema


@pytest.mark.parametrize("name", ["get_uncond", "get_cond"])
def test_a_converted_pipeline_makes_the_references_images(tmp_path: Path, convert, name: str):
    record = golden(name)
    official(tmp_path / "x.pth", record)
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2)
    assert result.code == 0, result.err
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    assert isinstance(model, GET)
    policy = {"iterations": 6, "z0": "normal", "map": "plain", "select": "lowest_residual"}
    assert policy.items() <= dict(model.config).items()
    with torch.no_grad():
        images = model(record["noise"], record.get("labels"), z0=record["z0"])
    torch.testing.assert_close(images, record["eval_output"], rtol=0, atol=1e-5)
    source = json.loads((tmp_path / "out" / "source.json").read_text())
    assert source["args"]["lr"] == 1e-4
    assert source["weights"] == "ema"


def test_a_converted_vit_makes_the_references_images(tmp_path: Path, convert):
    record = golden("vit_cond")
    official(tmp_path / "x.pth", record, model="ViT-Tiny/2")
    assert convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2).code == 0
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    assert isinstance(model, ViT)
    with torch.no_grad():
        images = model(record["noise"], record["labels"])
    torch.testing.assert_close(images, record["output"], rtol=0, atol=1e-5)


def test_raw_weights_are_converted_where_asked_for(tmp_path: Path, convert):
    ema = official(tmp_path / "x.pth", golden("get_uncond"))
    given = "--heads", 2, "--weights", "model"
    assert convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", *given).code == 0
    pipeline = GETPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    found = pipeline.model.state_dict()["injection.weight"]
    assert torch.equal(found, ema["qkv_inj.weight"] + 1)


def reference_state(model: torch.nn.Module) -> OrderedDict[str, Tensor]:
    """Return a state dict under the reference's keys."""
    names = {
        "embed.position": "pos_embed",
        "embed.patch.": "x_embedder.proj.",
        "embed.label.": "y_embedder.embedding_table.",
        "injection.": "qkv_inj.",
        "equilibrium_blocks.": "deq_blocks.",
        "decode.": "final_layer.",
        "final_layer.norm.": "final_layer.norm_final.",
    }
    state = OrderedDict()
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        state[key] = value
    assert list(from_reference(state)) == list(model.state_dict())
    return state


def named(path: Path, size: str, num_classes: int) -> None:
    """Write a checkpoint of a published size and new weights, without what makes it large."""
    model = build(size, image_size=8, num_classes=num_classes)
    record = {f"state.{k}": v for k, v in reference_state(model).items()}
    official(path, record, model=size, cond=True, num_classes=num_classes)


@pytest.mark.parametrize("size", ["GET-T/2", "ViT-S/4"])
def test_published_sizes_are_known_by_name(tmp_path: Path, convert, size: str):
    assert size in SIZES
    named(tmp_path / "x.pth", size, 4)
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out")
    assert result.code == 0, result.err
    assert f"{size}, ema weights, 4 classes" in result.out
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    expected = build(size, image_size=8, num_classes=4)
    assert model.config["heads"] == expected.config["heads"]
    assert model.config["width"] == expected.config["width"]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another size": ({"model": "GET-S/2"}, "width 32 instead of 512"),
    "another kind": ({"model": "ViT-S/2"}, "kind GET instead of ViT"),
    "a larger image": ({"input_size": 16}, "input_size 8 instead of 16"),
    "classes": ({"cond": True}, "cond False instead of True"),
    "another solver": ({"f_solver": "anderson"}, "f_solver fixed_point_iter, got 'anderson'"),
    "no iterations": ({"eval_f_max_iter": 0}, "eval_f_max_iter or f_max_iter above 0"),
}


@pytest.mark.parametrize(("args", "what"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_contradict_the_tensors_are_refused(
    tmp_path: Path, convert, args: dict[str, Any], what: str
):
    official(tmp_path / "x.pth", golden("get_uncond"), **args)
    given = tmp_path / "x.pth", tmp_path / "out", "--heads", 2
    refused(convert("get_checkpoint", *given), what)
    untouched(tmp_path)


def test_a_name_nobody_published_asks_for_heads_and_iterations_may_be_a_factor(
    tmp_path: Path, convert
):
    official(
        tmp_path / "x.pth", golden("get_uncond"), eval_f_max_iter=0, f_max_iter=4, eval_factor=2.5
    )
    given = "get_checkpoint", tmp_path / "x.pth", tmp_path / "out"
    refused(convert(*given), "GET-Tiny/2", "give --heads")
    assert "heads above 0" in convert(*given, "--heads", 0).err
    refused(convert(*given, "--heads", 3), "heads divide")
    untouched(tmp_path)
    assert convert(*given, "--heads", 2).code == 0
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    assert model.config["iterations"] == 10


def test_state_dicts_with_other_tensors_are_refused(tmp_path: Path, convert):
    record = golden("get_uncond")
    given = "get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2
    key = "state.blocks.1.mlp.fc2.bias"
    for changed, what in (
        ({k: v for k, v in record.items() if k != key}, "blocks.1.mlp.fc2.bias: torch.float32"),
        ({**record, key: record[key].double()}, "got torch.float64 [32]"),
        ({**record, "state.deq_blocks.0.attn.qkv.weight_g": record[key]}, "weight_g"),
        ({k: v for k, v in record.items() if "x_embedder" not in k}, "embed.patch.weight"),
        ({k: v for k, v in record.items() if not k.startswith("state.")}, "blocks.0.mlp.fc1"),
    ):
        official(tmp_path / "x.pth", changed)
        refused(convert(*given), what)
    for content in (
        {"model": {}},
        [1],
        {"args": argparse.Namespace(), "model": {"a": 1}, "ema": {}},
    ):
        refused(convert("get_checkpoint", saved(tmp_path / "y", content), tmp_path / "out"))
    untouched(tmp_path)


# ---------------------------------------------------------------------- going on


def reference_model() -> GET:
    """Return a small GET as the reference has one, with weights that are not zero."""
    torch.manual_seed(3)
    model = GET(
        image_size=8, channels=3, width=32, depth=1, equilibrium_depth=2, heads=2,
        equilibrium_mlp_ratio=4.0, iterations=6, z0="normal", map="plain",
    )  # fmt: skip
    torch.nn.init.normal_(model.decode.linear.weight, std=0.1)
    return model


def steps(model: GET, ema: EMA, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Train as the reference does, with random numbers of the step."""
    for step in numbers:
        generator = torch.Generator().manual_seed(step)
        noise, target = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
        z0 = torch.randn(2, 16, 32, generator=generator)
        losses = IterateLoss(model)(noise, None, target, z0).iterates
        loss = (geometric_weights(6, 0.8) * losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)


def interrupted_training(path: Path) -> tuple[GET, EMA]:
    """Train three steps, leave a checkpoint like the reference's, train three more."""
    model = reference_model()
    everything = [model.get_parameter(n) for n in model.state_dict()]  # position first, frozen
    optimizer = torch.optim.AdamW(everything, lr=1e-3, weight_decay=0)
    ema = EMA(model, 0.9)
    steps(model, ema, optimizer, range(3))
    assert min(optimizer.state_dict()["state"]) == 1
    torch.save(
        {
            "args": argparse.Namespace(**OFFICIAL),
            "model": reference_state(model),
            "ema": reference_state(ema.model),
            "opt": optimizer.state_dict(),
        },
        path,
    )
    steps(model, ema, optimizer, range(3, 6))
    return model, ema


def test_training_goes_on_from_a_converted_checkpoint_as_if_never_stopped(tmp_path: Path, convert):
    expected, average = interrupted_training(tmp_path / "x.pth")
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2)
    assert "with the optimiser" in result.out, result.err
    model = reference_model()
    ema = EMA(model, 0.9)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)
    line = start_from(tmp_path / "out", model, ema.model, {"optimizer": optimizer})
    assert line == (
        "starting from the weights and their average and the optimiser's moments "
        f"in {tmp_path / 'out'}"
    )
    steps(model, ema, optimizer, range(3, 6))
    for ours, theirs in ((model, expected), (ema.model, average.model)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


def test_moments_of_other_parameters_are_refused(tmp_path: Path, convert):
    record, given = golden("get_uncond"), ("get_checkpoint", tmp_path / "x.pth", tmp_path / "out")
    moment = {"step": 3, "exp_avg": torch.zeros(32), "exp_avg_sq": torch.zeros(32)}
    for state, what in (
        ({0: moment}, "at '0'"),  # the frozen table
        ({99: moment}, "at '99'"),
        ({1: {"momentum": torch.zeros(1)}}, "at '1'"),
        ({1: 5}, "at '1'"),
        ({2: moment}, "every trained parameter"),
        ({2: {**moment, "exp_avg": "x"}}, "got str"),
    ):
        official(tmp_path / "x.pth", record, opt={"state": state, "param_groups": []})
        refused(convert(*given, "--heads", 2), what)
    untouched(tmp_path)


@pytest.fixture
def imported(tmp_path: Path, convert) -> Path:
    """A converted checkpoint, and beside it pairs to train it on."""
    interrupted_training(tmp_path / "x.pth")
    assert convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "model", "--heads", 2).code == 0
    old_pairs(tmp_path / "old", {"1.pkl": 20}, classes=None)
    given = "get_pairs", tmp_path / "old", tmp_path / "pairs", "--pairs_per_shard", 4
    assert convert(*given).code == 0
    return tmp_path / "model"


@pytest.fixture
def fit(imported: Path, monkeypatch, capsys) -> Callable[..., Result]:
    """Return a function that trains two steps from the converted checkpoint."""
    shape = "--model.width", 32, "--model.depth", 1, "--model.equilibrium_depth", 2
    flags = (
        "smoke", "--pairs", imported.with_name("pairs"), "--output_dir", imported.with_name("run"),
        "--streams", 4, "--global_batch_size", 4, "--max_train_steps", 2, *shape,
        "--optimizer", "adamw",
    )  # fmt: skip

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, (*flags, *arguments))])
        capsys.readouterr()
        code = 0
        try:
            cli.run(train, STUDENTS)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


def test_train_begins_with_an_imported_model_and_a_second_call_does_not_look_at_it(
    imported: Path, fit
):
    policy = "--model.map", "plain", "--model.z0", "normal", "--model.iterations", 6
    given = "--init_from", imported, *policy, "--learning_rate", 1e-12
    first = fit(*given)
    assert first.code == 0, first.err
    assert f"the optimiser's moments in {imported}\n" in first.out
    saved = imported.with_name("run") / "checkpoints" / "checkpoint-2" / "state"
    for name in ("model", "ema"):
        before = load_file(imported / "state" / f"{name}.safetensors")
        after = load_file(saved / f"{name}.safetensors")
        for key, value in before.items():
            torch.testing.assert_close(
                after[key], value, rtol=0, atol=1e-2 if name == "ema" else 1e-6
            )
    assert load_file(saved / "optimizer.safetensors")["0.step"] == 5  # 3 there and 2 here
    for path in sorted(imported.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = fit(*given)
    assert "finished; nothing to do" in again.out, again.err


def test_train_says_which_policies_differ_and_refuses_another_shape(imported: Path, fit):
    run = imported.with_name("run")
    narrow = fit("--init_from", imported, "--model.width", 16)
    assert narrow.code == 2
    assert "GET of this run's shape" in narrow.err
    assert "width 32 instead of 16" in narrow.err
    assert not run.exists()
    for key in ("optimizer", "model"):
        path = imported / "state" / f"{key}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:99])
        assert "expected the state of a training" in fit("--init_from", imported).err
        path.write_bytes(whole)
    assert "expected a model (model_index.json)" in fit("--init_from", run.with_name("no")).err
    assert not run.exists()
    for path in (imported / "state").iterdir():
        path.unlink()
    (imported / "state").rmdir()
    result = fit("--init_from", imported)
    assert result.code == 0, result.err
    policies = "z0 was normal, is injection; map was plain, is anchored"
    assert f"starting from the weights in {imported} ({policies})" in result.out
