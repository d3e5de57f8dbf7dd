"""From a scheduler's class and settings to a deterministic solver: one loop for all of them.

A scheduler serves if its steps draw nothing. Those that do are refused by name, and so is any that
is not known here: one that draws would give another image every time, silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from data.teachers.edm.precondition import Predict, precondition
from data.teachers.heun import heun, karras_sigmas
from data.teachers.settings import Sampler
from get.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EdmHeun:
    """EDM's own sampler: Heun's method with a float64 state (`data/samplers.py`)."""

    steps: int
    sigma_data: float
    sigma_min: float
    sigma_max: float
    rho: float

    @property
    def evaluations(self) -> int:
        """Network evaluations an image."""
        return 2 * self.steps - 1

    def __call__(
        self, predict: Predict, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images of unit normal noise."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            denoised = precondition(predict, x.float(), sigma.float(), self.sigma_data)
            return denoised.to(torch.float64)

        sigmas = karras_sigmas(self.steps, self.sigma_min, self.sigma_max, self.rho)
        return heun(denoise, noise, sigmas).float()


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """One of diffusers' schedulers, made anew for every batch: they carry state."""

    kind: type
    arguments: dict[str, Any]
    steps: int
    evaluations: int = field(init=False)

    def __post_init__(self) -> None:
        """Try the scheduler on one pixel: what it cannot do shows before the first pair."""
        times = []

        def predict(x: Tensor, time: Tensor) -> Tensor:
            times.append(time)
            return x

        self(predict, torch.zeros(1, 1, 1, 1))
        object.__setattr__(self, "evaluations", len(times))

    @torch.no_grad()
    def __call__(
        self, predict: Predict, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images of unit normal noise."""
        scheduler = self.kind(**self.arguments)
        scheduler.set_timesteps(self.steps, device=noise.device)
        # Those for flow matching start at unit noise and do not scale: they lack both.
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            out = predict(scale(x, t), t.expand(len(x)))
            x = scheduler.step(out, t, x).prev_sample
        return x.float()


Solver = EdmHeun | Scheduled


@dataclass(frozen=True, kw_only=True)
class Family:
    """Schedulers that share a parametrisation, so that one may replace another.

    Attributes:
        by_name: The methods a `Sampler` can name.
        also: Classes that serve as well, where the teacher comes with them.
        noisy: Classes that draw noise, whose teachers one of `by_name` can sample.
        shared: Settings whose defaults differ among the classes.
    """

    by_name: dict[str, type]
    also: tuple[type, ...] = ()
    noisy: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def serving(self) -> dict[str, type]:
        """Classes whose steps draw nothing, by their own names."""
        return {kind.__name__: kind for kind in (*self.by_name.values(), *self.also)}


DISCRETE = Family(  # DDPM's parametrisation: betas, integer times
    by_name={
        "ddim": DDIMScheduler,
        "dpmsolver++": DPMSolverMultistepScheduler,
        "heun": HeunDiscreteScheduler,
        "euler": EulerDiscreteScheduler,
    },
    also=(
        DPMSolverSinglestepScheduler,
        DEISMultistepScheduler,
        UniPCMultistepScheduler,
        PNDMScheduler,
        LMSDiscreteScheduler,
        KDPM2DiscreteScheduler,
    ),
    noisy=(
        "DDPMScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
    ),
    shared=("beta_start", "beta_end"),
)
EDM = Family(
    by_name={
        "heun": EdmHeun,
        "euler": EDMEulerScheduler,
        "dpmsolver++": EDMDPMSolverMultistepScheduler,
    }
)
FLOW = Family(
    by_name={
        "heun": FlowMatchHeunDiscreteScheduler,
        "euler": FlowMatchEulerDiscreteScheduler,
    }
)
CONSISTENCY = Family(by_name={}, also=(CMStochasticIterativeScheduler,))
FAMILIES = (DISCRETE, EDM, FLOW, CONSISTENCY)


def choose_solver(
    class_name: str | None, config: Mapping[str, Any], sampler: Sampler, where: str
) -> Solver:
    """Return the solver that a sampler means for a teacher with this scheduler.

    Args:
        class_name: The scheduler's class, as `model_index.json` names it.
        config: What is in `scheduler_config.json`.
        sampler: The settings.
        where: The teacher, for messages.

    Raises:
        InputError: If the scheduler draws noise, is unknown or does not go with the settings.
    """
    families = [f for f in FAMILIES if class_name in f.serving or class_name in f.noisy]
    if class_name is None or not families:
        known = ", ".join(name for f in FAMILIES for name in f.serving if name != "EdmHeun")
        raise InputError(
            f"expected a deterministic scheduler in {where}, got {class_name}; these serve: {known}"
        )
    family, whose = families[0], f"{class_name} in {where}"
    _check(family, config, sampler, whose)
    named = "heun" if class_name == "EDMEulerScheduler" else class_name  # what "auto" stands for
    name = named if sampler.name == "auto" else sampler.name
    kind = (family.by_name | family.serving).get(name)
    if kind is EdmHeun:
        return _edm_heun(config, sampler.steps, whose)
    arguments = {} if kind is None else _arguments(kind, config, sampler)
    sde = str(arguments.get("algorithm_type")).startswith("sde")
    if kind is None or sde or arguments.get("stochastic_sampling"):
        raise InputError(
            f"expected a deterministic scheduler in {where}, got {class_name}, which draws noise "
            f"at every step; replace it with one of --sampler {', '.join(family.by_name)}"
        )
    try:
        return Scheduled(kind=kind, arguments=arguments, steps=sampler.steps)
    except (ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"expected settings of {whose} that {kind.__name__} can sample in {sampler.steps} "
            f"steps, got: {reason}; choose another --sampler"
        ) from error


def _check(family: Family, config: Mapping[str, Any], sampler: Sampler, whose: str) -> None:
    """Refuse what the family as a whole cannot do."""
    if sampler.name not in {"auto", *family.by_name}:
        names = ", ".join(family.by_name) or "auto"
        raise InputError(f"expected --sampler {names} for {whose}, got {sampler.name}")
    if (family is CONSISTENCY) != (sampler.steps == 1):
        wanted = "1 sampler step" if family is CONSISTENCY else "at least 2 sampler steps"
        raise InputError(
            f"expected {wanted} for {whose}, got {sampler.steps}; set --num_inference_steps"
        )
    if sampler.name != "auto" and (missing := sorted({*family.shared} - config.keys())):
        raise InputError(
            f"expected {' and '.join(missing)} in the settings of {whose}, got none; "
            "defaults differ between schedulers"
        )


def _arguments(kind: type, config: Mapping[str, Any], sampler: Sampler) -> dict[str, Any]:
    """Return the scheduler's arguments, as diffusers' own `from_config` finds them."""
    changes: dict[str, Any] = {"variance_type": None}  # a learned variance is cut off before
    if sampler.name != "auto":  # the deterministic one of two variants
        changes |= {"algorithm_type": "dpmsolver++", "stochastic_sampling": False}
    return kind.extract_init_dict(dict(config), **changes)[0]


def _edm_heun(config: Mapping[str, Any], steps: int, whose: str) -> EdmHeun:
    names = ("sigma_data", "sigma_min", "sigma_max", "rho")
    if config.get("prediction_type") != "epsilon" or not set(names) <= config.keys():
        raise InputError(
            f"expected prediction_type epsilon, {', '.join(names)} for {whose}, got "
            f"{dict(config)}; EDM's sampler needs them"
        )
    return EdmHeun(steps=steps, **{name: config[name] for name in names})
