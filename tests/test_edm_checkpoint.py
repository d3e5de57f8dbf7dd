"""EDM checkpoints: read whole without executing anything, refused by name, converted, sampled."""

import json
import os
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.teachers.edm.checkpoint import Denoiser, EdmTeacher, build, load, save
from data.teachers.edm.networks import DhariwalConfig, SongConfig
from data.teachers.edm.pickle_reader import Checkpoint, read_pickle
from data.teachers.edm.precond import EdmPrecond, Precond, VePrecond, VpPrecond
from data.teachers.settings import Sampler
from get.errors import InputError
from get.noise import draw
from pipeline import cli
from pipeline.convert import CONVERSIONS, main

from .edm_files import Call, Persistent, dumps, instance, snapshot, tiny, wrapped

ROOT = Path(__file__).parents[1]
FEW = Sampler(steps=3)
SIZE: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
VE: dict[str, Any] = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vp in EDM": ("EDMPrecond", {**SIZE, "model_type": "SongUNet", "augment_dim": 9}),
    "vp in EDM, 5 classes": ("EDMPrecond", {**SIZE, "model_type": "SongUNet", "label_dim": 5}),
    "ve in EDM": ("EDMPrecond", {**SIZE, **VE, "model_type": "SongUNet"}),
    "vp in VP": ("VPPrecond", {**SIZE, "use_fp16": False}),
    "ve in VE": ("VEPrecond", {**SIZE, **VE, "label_dim": 2}),
    "adm in EDM": ("EDMPrecond", {**SIZE, "label_dim": 5, "use_fp16": True}),
}
PRECONDS: dict[str, type[Precond]] = {
    "EDMPrecond": EdmPrecond,
    "VPPrecond": VpPrecond,
    "VEPrecond": VePrecond,
}
EVERY_KIND = pytest.mark.parametrize(("wrapper", "arguments"), KINDS.values(), ids=KINDS)


def denoiser_of(wrapper: str, arguments: dict[str, Any]) -> Denoiser:
    """Return the network that such arguments mean, of random weights."""
    sizes: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()
    }
    song = sizes.pop("model_type", None) == "SongUNet" or wrapper != "EDMPrecond"
    sizes.pop("use_fp16", None)
    config = SongConfig(**sizes) if song else DhariwalConfig(**sizes)
    torch.manual_seed(0)
    denoiser = Denoiser(PRECONDS[wrapper](), config)
    for name, tensor in denoiser.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.normal_(std=0.2)
    return denoiser


def write(path: Path, content: Callable[[], object], protocol: int = 4) -> Path:
    path.write_bytes(dumps(content, protocol))
    return path


def write_kind(path: Path, kind: str, protocol: int = 4, **attributes: object) -> Denoiser:
    wrapper, arguments = KINDS[kind]
    denoiser = denoiser_of(wrapper, arguments)
    write(path, lambda: snapshot(wrapped(denoiser, wrapper, arguments, **attributes)), protocol)
    return denoiser


@pytest.fixture
def pkl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a pickle; where a trap would leave the file `executed`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "network.pkl"


@pytest.fixture(autouse=True)
def _nothing_was_executed(pkl: Path):
    before = set(sys.modules)
    yield
    assert not (pkl.parent / "executed").exists()
    assert not {"torch_utils", "dnnlib"} & (set(sys.modules) - before)


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("kind", "protocol"), [(kind, 4) for kind in KINDS] + [("ve in EDM", n) for n in (2, 3, 5)]
)
def test_a_checkpoint_is_read_whole(pkl: Path, kind: str, protocol: int) -> None:
    wrapper, arguments = KINDS[kind]
    denoiser = denoiser_of(wrapper, arguments)
    write(pkl, lambda: snapshot(wrapped(denoiser, wrapper, arguments)), protocol)
    assert b"executed" in pkl.read_bytes()  # the trap is there
    found = read_pickle(pkl)
    assert (found.wrapper, found.arguments) == (wrapper, arguments)
    expected = denoiser.state_dict()
    assert list(found.state) == list(expected)
    assert all(torch.equal(found.state[name], expected[name]) for name in expected)
    ours = build(found)
    assert asdict(ours.config) == asdict(denoiser.config)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(0.7)
    assert torch.equal(ours(x, sigma, None), denoiser(x, sigma, None))


def test_numbers_noted_in_the_modules_are_read(pkl: Path) -> None:
    write_kind(pkl, "vp in EDM")
    noted = read_pickle(pkl).attributes
    assert noted["sigma_data"] == 0.5
    assert noted["model.enc.4x4_down.skip_scale"] == 0.5**0.5
    assert noted["model.enc.4x4_down.conv0.down"] is True
    assert noted["model.dec.4x4_in0.num_heads"] == 1


def test_an_easy_dictionary_may_have_an_empty_state(pkl: Path) -> None:
    data, made = dumps(tiny, 2), b"cdnnlib.util\nEasyDict\n"
    start = data.index(b")\x81q", data.index(made))
    end = start + 4  # NEWOBJ and its place in the memo
    pkl.write_bytes(data[:end] + b"}b" + data[end:])
    assert read_pickle(pkl).wrapper == "EDMPrecond"


def test_scalars_of_numpy_1_are_read(pkl: Path) -> None:
    write_kind(pkl, "vp in EDM", protocol=2)
    data = pkl.read_bytes()
    assert data.count(b"cnumpy._core.multiarray\nscalar\n") == 1
    pkl.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_pickle(pkl).attributes["model.enc.4x4_down.skip_scale"] == 0.5**0.5


def views(*arguments: object) -> Callable[[], object]:
    """Return a tiny checkpoint with a tensor (offset, size, stride) of a storage of 0 to 11."""

    def content() -> object:
        rebuild, given = torch.arange(12.0).__reduce_ex__(4)
        return tiny(_buffers={"view": Call(rebuild, given[0], *arguments, False, OrderedDict())})

    return content


def test_offsets_and_strides_are_honoured(pkl: Path) -> None:
    found = read_pickle(write(pkl, views(1, (2, 3), (1, 4))))
    assert found.state["view"].tolist() == [[1, 5, 9], [2, 6, 10]]


VIEWS = {
    "beyond the end": (1, (12,), (1,)),
    "an offset before the start": (-1, (2,), (1,)),
    "a stride backwards": (11, (12,), (-1,)),
    "a stride backwards beside one forwards": (0, (2, 3), (-1, 2)),
    "a stride beyond": (0, (2,), (12,)),
    "repeated without end": (0, (10**12,), (0,)),
    "a huge product": (0, (2**40, 2**40), (0, 0)),
    "a huge size": (0, (2**100,), (1,)),
    "a huge stride": (0, (1,), (2**100,)),
    "a negative size": (0, (-3,), (1,)),
    "an empty size": (0, (0,), (1,)),
    "too few strides": (0, (3, 4), (4,)),
    "a size of text": (0, ("3",), (1,)),
    "many dimensions": (0, (1,) * 99, (1,) * 99),
    "an offset of text": ("0", (3,), (1,)),
}


@pytest.mark.parametrize("arguments", VIEWS.values(), ids=VIEWS)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(pkl: Path, arguments: tuple) -> None:
    write(pkl, views(*arguments))
    with pytest.raises(InputError, match=r"does not fit its storage|_rebuild_tensor_v2|of 101 bit"):
        read_pickle(pkl)


# ---------------------------------------------------------------------- refusing


def refusal(pkl: Path) -> str:
    with pytest.raises(InputError, match=r"expected an NVlabs EDM checkpoint in .*, got ") as error:
        read_pickle(pkl)
    assert "\n" not in str(error.value)
    return str(error.value)


SYSTEM = Call(os.system, "touch executed")
PLACES: dict[str, Callable[[Any], object]] = {
    "alone": lambda trap: trap,
    "beside ema": lambda trap: {**tiny(), "loss_fn": trap},
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
def test_a_command_is_refused_wherever_it_hides(
    pkl: Path, place: Callable[[Any], object], protocol: int
) -> None:
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
def test_instructions_that_no_checkpoint_has_are_refused(
    pkl: Path, stream: bytes, what: str
) -> None:
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
    whole = dumps(tiny, protocol)
    for end in (*range(1, 99), *range(99, len(whole), 41), len(whole) - 1):
        pkl.write_bytes(whole[:end])
        assert f"cut short after {end} bytes" in refusal(pkl)


def test_a_changed_byte_is_read_or_refused_but_never_fails_otherwise(pkl: Path) -> None:
    whole, chance = dumps(tiny), random.Random(0)
    refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(len(data))] = chance.randrange(256)
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
def test_a_storage_that_is_not_whole_or_asks_for_anything_is_refused(
    pkl: Path, change: Callable[[bytes], bytes]
) -> None:
    whole = write(pkl, storage(lambda data: data)).read_bytes()
    assert read_pickle(pkl).state["x"].tolist() == [0, 1, 2, 3]
    write(pkl, storage(change))
    assert pkl.read_bytes() != whole
    refusal(pkl)


def test_a_storage_within_a_storage_is_refused_by_name(pkl: Path) -> None:
    """Else thousands of them, one within the other, would exhaust the stack."""
    inner = dumps(lambda: Call(torch.storage._load_from_bytes, b""), 2)
    write(pkl, storage(lambda data: inner + data))
    assert "asks for torch.storage._load_from_bytes" in refusal(pkl)


def nested(depth: int) -> object:
    module = torch.nn.Module()
    state = instance(module)
    for _ in range(depth):
        state = instance(module) | {"_modules": {"a": Persistent("Linear", state)}}
    return {"ema": Persistent("EDMPrecond", state)}


def twice() -> object:
    child = Persistent("Linear", instance(torch.nn.Module()))
    return tiny(_modules={"a": child, "b": child})


def described(**changes: object) -> Callable[[], object]:
    """Return a tiny checkpoint whose wrapper says something else of itself."""

    def content() -> object:
        ema = Persistent("EDMPrecond", instance(torch.nn.Module()))
        ema.description |= changes
        return {"ema": ema}

    return content


def test_the_layout_that_is_changed_below_is_read(pkl: Path) -> None:
    assert read_pickle(write(pkl, described())).wrapper == "EDMPrecond"


LAYOUTS: dict[str, Callable[[], object]] = {
    "another version": described(version=7),
    "a function": described(type="func"),
    "one more field": described(meta={}),
    "no modules": lambda: {"ema": Persistent("E", {"_init_args": (), "_init_kwargs": {}})},
    "arguments by place": lambda: tiny(_init_args=(32,)),
    "an argument that is no plain value": lambda: tiny(_init_kwargs={"a": [[1]]}),
    "an argument without a name": lambda: tiny(_init_kwargs={1: 1}),
    "a module that is none": lambda: tiny(_modules={"model": "Linear"}),
    "a parameter that is none": lambda: tiny(_parameters={"weight": 1.0}),
    "modules without end": lambda: nested(40),
    "a module twice": twice,
    "no ema": lambda: {"state_dict": {}},
}


@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS)
def test_objects_of_another_layout_are_refused(pkl: Path, content: Callable[[], object]) -> None:
    refusal(write(pkl, content))


# ---------------------------------------------------------------------- building


def checkpoint(kind: str = "vp in EDM, 5 classes") -> Checkpoint:
    wrapper, arguments = KINDS[kind]
    return Checkpoint(wrapper, arguments, denoiser_of(wrapper, arguments).state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "UNet"},
        {"model_type": ["SongUNet"]},
        {"img_resolution": None},
        {"img_resolution": "8"},
        {"img_resolution": 8.0},
        {"label_dim": True},
        {"channel_mult": 2},
        {"channel_mult": ["1", "2"]},
        {"embedding_type": "none"},
        {"encoder_type": "skip"},
        {"sigma_data": 0.0},
        {"sigma_data": "x"},
        {"number_of_blocks": 1},
        {"label_dim": 4},
        {"model_channels": 12},
    ],
    ids=str,
)
def test_arguments_that_mean_no_network_or_another_one_are_refused(changes: dict) -> None:
    before = checkpoint()
    with pytest.raises(InputError, match=r"^expected .*, got "):
        build(replace(before, arguments={**before.arguments, **changes}))


def test_missing_arguments_and_unknown_wrappers_are_refused() -> None:
    before = checkpoint()
    with pytest.raises(InputError, match="expected arguments img_channels, img_resolution"):
        build(replace(before, arguments={"model_type": "SongUNet"}))
    with pytest.raises(InputError, match="EDMPrecond, VPPrecond, VEPrecond, got one of iDDPM"):
        build(replace(before, wrapper="iDDPMPrecond"))


def test_missing_additional_and_changed_tensors_are_refused_by_name() -> None:
    before = checkpoint()
    name = "model.enc.8x8_conv.bias"
    without = {k: v for k, v in before.state.items() if k != name}
    for state, found in (
        (without, "none"),
        ({**before.state, name: torch.zeros(9)}, r"float32 \[9\]"),
        ({**before.state, name: torch.zeros(8, dtype=torch.float64)}, r"float64 \[8\]"),
    ):
        with pytest.raises(InputError, match=rf"{name}: float32 \[8\], got {found}"):
            build(replace(before, state=state))
    with pytest.raises(InputError, match=r"more: none, got float32 \[1\]"):
        build(replace(before, state={**before.state, "more": torch.zeros(1)}))


@pytest.mark.parametrize(
    "noted",
    [
        {"sigma_data": 0.6},
        {"img_channels": 1},
        {"model.enc.4x4_down.skip_scale": 1.0},
        {"model.enc.4x4_block0.num_heads": 2},
        {"model.enc.4x4_block0.norm1.eps": 1e-5},
        {"model.enc.4x4_block0.adaptive_scale": True},
        {"model.dec.8x8_up.conv0.up": False},
        {"model.map_noise.endpoint": False},
    ],
    ids=str,
)
def test_constants_unlike_ours_are_refused_by_name(noted: dict[str, float]) -> None:
    name, value = next(iter(noted.items()))
    with pytest.raises(InputError, match=rf"expected {name} = .*, got {value}"):
        build(replace(checkpoint(), attributes=noted))


# ---------------------------------------------------------------------- teaching


def images(teacher: EdmTeacher, count: int = 2) -> Tensor:
    return teacher(*draw(0, range(count), teacher.image_shape, teacher.num_classes))


@EVERY_KIND
def test_pickle_and_folder_make_the_same_teacher(
    pkl: Path, wrapper: str, arguments: dict[str, Any]
) -> None:
    write(pkl, lambda: snapshot(wrapped(denoiser_of(wrapper, arguments), wrapper, arguments)))
    folder = pkl.with_name("folder")
    folder.mkdir()
    save(load(pkl)[0], folder)
    assert sorted(p.name for p in folder.iterdir()) == ["edm.json", "model.safetensors"]
    first, second = (EdmTeacher(path, FEW, "cpu") for path in (pkl, folder))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(images(first), images(second))
    assert images(first).dtype == torch.float32
    assert first.image_shape == (3, 8, 8)
    assert first.num_classes == arguments.get("label_dim")
    assert first.evaluations == 5


@pytest.mark.parametrize(
    ("kind", "high", "low"),
    [("vp in EDM", 80, 0.002), ("vp in VP", 80, 0.002), ("ve in VE", 80, 0.02)],
)
def test_noise_levels_stay_within_the_networks_range(
    pkl: Path, kind: str, high: float, low: float
) -> None:
    write_kind(pkl, kind)
    sigmas = EdmTeacher(pkl, FEW, "cpu").sigmas
    assert sigmas[[0, -2, -1]].tolist() == pytest.approx([high, low, 0])


def folder_of(path: Path, **arguments: float) -> Path:
    before = checkpoint()
    path.mkdir()
    save(replace(before, arguments={**before.arguments, **arguments}), path)
    return path


def test_noise_levels_are_those_of_the_recorded_range(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", sigma_min=0.1, sigma_max=20)
    sigmas = EdmTeacher(folder, FEW, "cpu").sigmas
    assert sigmas[[0, -2]].tolist() == pytest.approx([20, 0.1])
    with pytest.raises(InputError, match="expected noise levels"):
        EdmTeacher(folder_of(tmp_path / "b", sigma_min=90.0), FEW, "cpu")


def test_classes_make_different_images_and_an_image_depends_on_its_own_input(
    tmp_path: Path,
) -> None:
    teacher = EdmTeacher(folder_of(tmp_path / "a"), FEW, "cpu")
    noise, labels = draw(0, range(3), teacher.image_shape, teacher.num_classes)
    assert labels is not None
    together = teacher(noise, labels)
    alone = [teacher(noise[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert not torch.allclose(teacher(noise, (labels + 1) % 5), together, atol=1e-3)


def test_the_fingerprint_tells_weights_settings_and_steps_apart(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    found = [
        EdmTeacher(folder, FEW, "cpu").fingerprint,
        EdmTeacher(folder, Sampler(steps=4), "cpu").fingerprint,
        EdmTeacher(folder_of(tmp_path / "b", sigma_data=0.6), FEW, "cpu").fingerprint,
    ]
    weights = load_file(folder / "model.safetensors")
    weights["model.enc.8x8_conv.bias"][0] += 1e-6
    save_file(weights, folder / "model.safetensors")
    found.append(EdmTeacher(folder, FEW, "cpu").fingerprint)
    assert len(set(found)) == 4
    assert {len(f) for f in found} == {64}


@pytest.mark.parametrize(
    "sampler", [Sampler(name="euler"), Sampler(steps=1), Sampler(guidance_scale=2.0)], ids=str
)
def test_another_sampler_than_edms_is_refused(tmp_path: Path, sampler: Sampler) -> None:
    with pytest.raises(InputError, match="for an EDM checkpoint"):
        EdmTeacher(folder_of(tmp_path / "a"), sampler, "cpu")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no description": lambda f: (f / "edm.json").unlink(),
    "a damaged description": lambda f: (f / "edm.json").write_text("{"),
    "another format": lambda f: (f / "edm.json").write_text(
        json.dumps(json.loads((f / "edm.json").read_text()) | {"format": 2})
    ),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "cut weights": lambda f: (f / "model.safetensors").write_bytes(b"12"),
    "weights of another": lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(folder := folder_of(tmp_path / "a"))
    with pytest.raises(InputError, match=f"^expected .* in {folder}"):
        EdmTeacher(folder, FEW, "cpu")


# ---------------------------------------------------------------------- converting


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    try:
        cli.run(main, CONVERSIONS)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_convert_writes_a_whole_folder_and_refuses_to_replace_one(
    pkl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kind(pkl, "ve in VE")
    out = pkl.parent / "new" / "out"
    assert convert(monkeypatch, "edm", pkl, out) == 0
    assert "tensors of a VEPrecond" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    fingerprints = {EdmTeacher(path, FEW, "cpu").fingerprint for path in (pkl, out)}
    assert len(fingerprints) == 1
    assert convert(monkeypatch, "edm", pkl, out) == 2
    assert "convert: expected nothing at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [lambda: SYSTEM, lambda: {"ema": 1}, tiny], ids=["a trap", "no network", "too small"]
)
def test_convert_says_in_one_line_what_is_wrong_and_leaves_nothing(
    pkl: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: Callable[[], object],
) -> None:
    write(pkl, content)
    assert convert(monkeypatch, "edm", pkl, pkl.parent / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in pkl.parent.iterdir()] == ["network.pkl"]


def test_convert_runs_as_a_module(pkl: Path) -> None:
    write_kind(pkl, "vp in EDM")
    subprocess.run(
        [sys.executable, "-m", "pipeline.convert", "edm", str(pkl), str(pkl.parent / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    assert EdmTeacher(pkl.parent / "out", FEW, "cpu").num_classes is None
