"""Settings of sampler, precision and speed: what they change, and that the fingerprint says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler

from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from get.errors import InputError

from .diffusers_files import FEW, change_a_weight, edit, sample, save_dit, save_unet, tiny_unet
from .problems import as_users_run_it as as_users_run_it

# Half of the schedulers of diffusers 0.42 hand torch tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.mark.parametrize("name", ["auto", "dpmsolver++"])
def test_bfloat16_changes_the_network_a_little_and_the_state_not_at_all(name, tmp_path):
    folder = save_unet(tmp_path, EDMEulerScheduler())
    sampler = Sampler(steps=4, name=name)
    full = open_teacher(folder, sampler, "cpu")
    half = open_teacher(folder, sampler, "cpu", Execution(mixed_precision="bf16"))
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    difference = (sample(half) - sample(full)).abs().max()
    assert 0 < difference < 0.05 * sample(full).abs().max()
    assert sample(half).dtype == torch.float32


def test_the_memory_format_changes_the_layout_only(tmp_path: Path) -> None:
    folder = save_unet(tmp_path, DDIMScheduler())
    last = Execution(memory_format="channels_last")
    plain, other = (open_teacher(folder, FEW, "cpu", e) for e in (Execution(), last))
    weight = other.network.get_parameter("conv_in.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sample(plain), sample(other), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images(tmp_path: Path) -> None:
    folder = save_unet(tmp_path, DDIMScheduler())
    plain, other = (open_teacher(folder, FEW, "cpu", Execution(compile=c)) for c in (False, True))
    torch.testing.assert_close(sample(plain), sample(other), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ fingerprint


def fingerprint(
    folder: Path,
    sampler: Sampler = FEW,
    execution: Execution = Execution(),  # noqa: B008
) -> str:
    return open_teacher(folder, sampler, "cpu", execution).fingerprint


def test_the_fingerprint_tells_all_settings_apart_and_nothing_else(tmp_path: Path) -> None:
    dit, scheduler_config = save_dit(tmp_path / "dit"), "scheduler/scheduler_config.json"
    copy = shutil.copytree(dit, tmp_path / "elsewhere")
    assert fingerprint(copy) == fingerprint(dit)
    fingerprints = [fingerprint(dit)]
    fingerprints += [fingerprint(dit, Sampler(steps=n)) for n in (3, 5)]
    fingerprints += [fingerprint(dit, Sampler(steps=4, name="euler"))]
    fingerprints += [fingerprint(dit, Sampler(steps=4, guidance_scale=g)) for g in (2.0, 4.0)]
    last = Execution(memory_format="channels_last")
    for execution in (Execution(mixed_precision="bf16"), last, Execution(compile=True)):
        fingerprints += [fingerprint(dit, execution=execution)]
    edit(copy / scheduler_config, beta_end=0.03)
    fingerprints += [fingerprint(copy)]
    edit(copy / "transformer" / "config.json", norm_eps=1e-4)
    fingerprints += [fingerprint(copy)]
    assert len(set(fingerprints)) == len(fingerprints)


def test_the_fingerprint_tells_weights_and_schedulers_apart(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "unet", DPMSolverMultistepScheduler())
    fingerprints = [fingerprint(folder)]
    change_a_weight(folder)
    fingerprints += [fingerprint(folder)]
    index = json.loads((folder / "model_index.json").read_text())
    edit(folder / "model_index.json", scheduler=["diffusers", "UniPCMultistepScheduler"])
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    fingerprints += [fingerprint(folder)]
    edm = save_unet(tmp_path / "edm", EDMEulerScheduler(), tiny_unet(5))
    fingerprints += [fingerprint(edm)]
    change_a_weight(edm)
    for change in ({}, {"sigma_data": 0.6}, {"sigma_min": 0.6}, {"sigma_max": 60.0}, {"rho": 6.0}):
        edit(edm / "scheduler" / "scheduler_config.json", **change)
        fingerprints += [fingerprint(edm)]
    assert len(set(fingerprints)) == len(fingerprints)


def test_settings_leave_defaults_out_and_can_be_read_back() -> None:
    assert Sampler().settings() == {"steps": 18}
    assert Execution().settings() == {}
    for settings in (Sampler(steps=7), Sampler(steps=4, name="ddim", guidance_scale=1.5)):
        assert Sampler(**json.loads(json.dumps(settings.settings()))) == settings
    bf16 = Execution(mixed_precision="bf16", compile=True)
    assert bf16.settings() == {"mixed_precision": "bf16", "compile": True}
    assert Execution(**bf16.settings()) == bf16


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1 sampler step, got 0"),
        ({"guidance_scale": 0.5}, "guidance_scale of at least 1 .* got 0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"name": "ddpm"}, "among auto, heun, euler, ddim, dpmsolver\\+\\+, got ddpm"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(**settings)


@pytest.mark.parametrize("name", ["network.pkl", "edm.json"])
def test_an_edm_checkpoint_is_known_by_its_name(name, tmp_path):
    (tmp_path / name).write_text("{}")
    path = tmp_path / name if name == "network.pkl" else tmp_path
    with pytest.raises(InputError, match="EDM"):
        open_teacher(path, Sampler(name="ddim"), "cpu")
