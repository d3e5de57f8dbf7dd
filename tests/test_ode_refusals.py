"""Schedulers and settings that make no deterministic sampler, each refused in one line."""

from pathlib import Path
from typing import Any

import diffusers as hf
import pytest

from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get.errors import InputError

from .diffusers_files import save_unet

# Half of the schedulers of diffusers 0.42 hand torch tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

NAMES = "ddim, dpmsolver\\+\\+, heun, euler"
TWO_STEPS = "at least 2 sampler steps .* got 1"
REFUSED: dict[str, tuple[Any, Sampler, str]] = {
    "DDPM": (hf.DDPMScheduler, Sampler(), f"DDPMScheduler, which draws noise .* {NAMES}$"),
    "Euler ancestral": (hf.EulerAncestralDiscreteScheduler, Sampler(), f"draws noise .* {NAMES}$"),
    "KDPM2 ancestral": (hf.KDPM2AncestralDiscreteScheduler, Sampler(), f"draws noise .* {NAMES}$"),
    "SDE": (
        hf.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), Sampler(),
        f"DPMSolverMultistepScheduler, which draws noise .* {NAMES}$",
    ),
    "stochastic flow": (
        hf.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), Sampler(),
        "draws noise .* heun, euler$",
    ),
    "LCM": (hf.LCMScheduler, Sampler(), "got LCMScheduler; these serve: DDIMScheduler, DPM.*, CM"),
    "consistency, many steps": (
        hf.CMStochasticIterativeScheduler, Sampler(), "1 sampler step for CM.* got 18"
    ),
    "diffusion, one step": (hf.DDIMScheduler, Sampler(steps=1), TWO_STEPS),
    "EDM, one step": (hf.EDMEulerScheduler, Sampler(steps=1), TWO_STEPS),
    "another family's method": (
        hf.EDMEulerScheduler, Sampler(name="ddim"),
        "--sampler heun, euler, dpmsolver\\+\\+ for EDMEulerScheduler .* got ddim",
    ),
    "a consistency model's method": (
        hf.CMStochasticIterativeScheduler, Sampler(steps=1, name="euler"), "--sampler auto .* euler"
    ),
    "resolution-dependent shift": (
        hf.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), Sampler(steps=4),
        "settings of FlowMatchEulerDiscreteScheduler .* got: .*mu",
    ),
    "a prediction that the method lacks": (
        hf.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        Sampler(steps=4, name="ddim"), "that DDIMScheduler can sample in 4 steps, got: ",
    ),
    "more steps than there are": (
        hf.DDIMScheduler(num_train_timesteps=10), Sampler(steps=11), "in 11 steps, got: "
    ),
    "guidance": (hf.DDIMScheduler, Sampler(guidance_scale=2.0), "guidance_scale 1 .* got 2.0; it"),
}  # fmt: skip


@pytest.mark.parametrize(("scheduler", "sampler", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_be_a_deterministic_teacher_is_refused_in_one_line(
    scheduler: Any, sampler: Sampler, message: str, tmp_path: Path
) -> None:
    save_unet(tmp_path, scheduler() if isinstance(scheduler, type) else scheduler)
    with pytest.raises(InputError, match=f"^expected .*{message}") as raised:
        open_teacher(tmp_path, sampler, "cpu")
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_betas_left_to_a_default_are_refused_where_another_class_would_fill_them_in(tmp_path):
    path = save_unet(tmp_path, hf.DDIMScheduler()) / "scheduler" / "scheduler_config.json"
    path.write_text("{}")
    open_teacher(tmp_path, Sampler(steps=2), "cpu")
    with pytest.raises(InputError, match=f"expected beta_end and beta_start .* in {tmp_path}, got"):
        open_teacher(tmp_path, Sampler(steps=2, name="heun"), "cpu")
