"""From an EDM checkpoint to a network and a teacher; what contradicts itself is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.teachers.edm.checkpoint import build, load, open_checkpoint, save
from data.teachers.edm.layers import Conv
from data.teachers.heun import EdmHeun
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher
from get.errors import InputError
from get.noise import draw

from .edm_files import KINDS, checkpoint, save_kind, write_kind
from .edm_files import _nothing_was_executed as _nothing_was_executed
from .edm_files import pkl as pkl

FEW = Sampler(steps=3)


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
    for state, got in (
        (without, "none"),
        ({**before.state, name: torch.zeros(9)}, r"float32 \[9\]"),
        ({**before.state, name: torch.zeros(8, dtype=torch.float64)}, r"float64 \[8\]"),
    ):
        with pytest.raises(InputError, match=rf"{name}: float32 \[8\], got {got}"):
            build(replace(before, state=state))
    with pytest.raises(InputError, match=r"more: none, got float32 \[1\]"):
        build(replace(before, state={**before.state, "more": torch.zeros(1)}))


@pytest.mark.parametrize(
    "recorded",
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
def test_constants_unlike_ours_are_refused_by_name(recorded: dict[str, float]) -> None:
    name, value = next(iter(recorded.items()))
    with pytest.raises(InputError, match=rf"expected {name} = .*, got {value}"):
        build(replace(checkpoint(), attributes=recorded))


def levels(path: Path) -> list[float]:
    """Return the highest, the lowest and the last noise level of sampling."""
    ode = open_checkpoint(path, FEW, "cpu").ode
    assert isinstance(ode, EdmHeun)
    return ode.sigmas[[0, -2, -1]].tolist()


def images(teacher: Teacher, count: int = 2) -> Tensor:
    return teacher(*draw(0, range(count), teacher.image_shape, teacher.num_classes))


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_and_folder_make_the_same_teacher(pkl: Path, kind: str) -> None:
    write_kind(pkl, kind)
    folder = pkl.with_name("folder")
    folder.mkdir()
    save(load(pkl)[0], folder)
    assert sorted(p.name for p in folder.iterdir()) == ["edm.json", "model.safetensors"]
    first, second = (open_checkpoint(path, FEW, "cpu") for path in (pkl, folder))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(images(first), images(second))
    assert images(first).dtype == torch.float32
    assert first.image_shape == (3, 8, 8)
    assert first.num_classes == KINDS[kind][1].get("label_dim")
    assert first.evaluations == 5


def test_bfloat16_changes_an_edm_network_a_little_and_stays_bfloat16_inside(tmp_path: Path) -> None:
    folder = save_kind(tmp_path / "a")
    bf16 = Execution(mixed_precision="bf16", memory_format="channels_last")
    full, half = (open_checkpoint(folder, FEW, "cpu", e) for e in (Execution(), bf16))
    inside = set()
    for module in half.network.modules():
        if isinstance(module, Conv):
            module.register_forward_hook(lambda m, args, out: inside.add(out.dtype))
    expected, made = images(full), images(half)
    assert inside == {torch.bfloat16}
    assert made.dtype == torch.float32
    assert 0 < (made - expected).norm() < 0.05 * expected.norm()
    assert half.execution == bf16


def test_noise_levels_stay_within_the_networks_range(pkl: Path, tmp_path: Path) -> None:
    for kind, low in (("vp in EDM", 0.002), ("vp in VP", 0.002), ("ve in VE", 0.02)):
        write_kind(pkl, kind)
        assert levels(pkl) == pytest.approx([80, low, 0])
    folder = save_kind(tmp_path / "a", sigma_min=0.1, sigma_max=20)
    assert levels(folder) == pytest.approx([20, 0.1, 0])
    with pytest.raises(InputError, match="expected noise levels"):
        open_checkpoint(save_kind(tmp_path / "b", sigma_min=90.0), FEW, "cpu")


def test_the_fingerprint_tells_weights_settings_and_steps_apart(tmp_path: Path) -> None:
    folder = save_kind(tmp_path / "a")
    fingerprints = [
        open_checkpoint(folder, FEW, "cpu").fingerprint,
        open_checkpoint(folder, Sampler(steps=4), "cpu").fingerprint,
        open_checkpoint(save_kind(tmp_path / "b", sigma_data=0.6), FEW, "cpu").fingerprint,
    ]
    weights = load_file(folder / "model.safetensors")
    weights["model.enc.8x8_conv.bias"][0] += 1e-6
    save_file(weights, folder / "model.safetensors")
    fingerprints.append(open_checkpoint(folder, FEW, "cpu").fingerprint)
    for execution in (Execution(compile=True), Execution(mixed_precision="bf16")):
        fingerprints.append(open_checkpoint(folder, FEW, "cpu", execution).fingerprint)
    assert len(set(fingerprints)) == 6
    assert {len(fingerprint) for fingerprint in fingerprints} == {64}


@pytest.mark.parametrize(
    ("sampler", "expected", "got"),
    [
        (Sampler(name="euler"), "--sampler heun for", "euler"),
        (Sampler(steps=1), "at least 2 sampler steps for", "1"),
        (Sampler(guidance_scale=2.0), "guidance_scale 1 .* for the", "2.0"),
    ],
)
def test_another_sampler_than_edms_is_refused(tmp_path, sampler, expected, got):
    folder = save_kind(tmp_path / "a")
    with pytest.raises(InputError, match=f"^expected {expected} EDMPrecond in {folder}, got {got}"):
        open_checkpoint(folder, sampler, "cpu")


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
    damage(folder := save_kind(tmp_path / "a"))
    with pytest.raises(InputError, match=f"^expected .* in {folder}"):
        open_checkpoint(folder, FEW, "cpu")
