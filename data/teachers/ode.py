"""The choice of the teacher's sampler: what integrates its ODE from noise to image.

A table says which samplers go with which teachers. diffusers' schedulers serve if their steps draw
no noise. Those that do are refused by name, and so are unknown ones: a sampler that draws would
silently give another image every time. EDM's own sampler, which diffusers lacks, is in `heun.py`.
To add a sampler, write a class like `EdmHeun` and enter it in the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import diffusers
import torch
from diffusers import ConfigMixin
from jaxtyping import Float
from torch import Tensor

from data.teachers.edm.precondition import Predict
from data.teachers.heun import EdmHeun
from data.teachers.points import Point, of_scheduler
from data.teachers.settings import Sampler
from get.errors import InputError


@runtime_checkable  # the tests check annotations
class OdeSampler(Protocol):
    """From unit normal noise to float32 images, by the predictions of a raw network."""

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        ...

    def __call__(
        self, predict: Predict, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the images, nominally in [-1, 1], not clipped."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """One of diffusers' schedulers, made anew for every batch because it carries state."""

    kind: type
    arguments: dict[str, Any]
    steps: int
    evaluations: int = field(init=False)
    points: tuple[Point, ...] = field(init=False)  # states between noise and image

    def __post_init__(self) -> None:
        """Try the scheduler on one pixel, so that it fails here and not at the first pair."""
        times: list[float] = []

        def predict(x: Tensor, time: Tensor) -> Tensor:
            times.append(float(time))
            return x

        scheduler = self.kind(**self.arguments)
        self._sample(scheduler, predict, torch.zeros(1, 1, 1, 1))
        object.__setattr__(self, "evaluations", len(times))
        object.__setattr__(self, "points", of_scheduler(scheduler, times))

    def __call__(
        self, predict: Predict, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images of unit normal noise."""
        return self._sample(self.kind(**self.arguments), predict, noise)

    def _sample(self, scheduler: Any, predict: Predict, noise: Tensor) -> Tensor:
        scheduler.set_timesteps(self.steps, device=noise.device)
        # Schedulers of flow matching start at unit noise and do not scale: they lack both.
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            out = predict(scale(x, t), t.expand(len(x)))
            x = scheduler.step(out, t, x).prev_sample
        return x.float()


@dataclass(frozen=True, kw_only=True)
class Family:
    """Teachers of one parametrisation, which the same samplers can sample.

    Attributes:
        by_name: The samplers that `Sampler.name` can choose: a scheduler of diffusers, or a class
            with `from_config`.
        also: Schedulers that serve as well, where the teacher comes with them.
        noisy: Schedulers that draw noise; one of `by_name` can sample their teachers.
        auto: What "auto" chooses for a teacher, where that is not the teacher's own scheduler.
        shared: Settings whose defaults differ among the schedulers.
    """

    by_name: dict[str, type]
    also: tuple[type, ...] = ()
    noisy: tuple[str, ...] = ()
    auto: Mapping[str, str] = field(default_factory=dict)
    shared: tuple[str, ...] = ()

    @property
    def serving(self) -> dict[str, type]:
        """Schedulers whose steps draw nothing, by the names of their classes."""
        kinds = (*self.by_name.values(), *self.also)
        return {kind.__name__: kind for kind in kinds if issubclass(kind, ConfigMixin)}


DISCRETE = Family(  # DDPM's parametrisation: betas, integer times
    by_name={
        "ddim": diffusers.DDIMScheduler,
        "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    },
    also=(
        diffusers.DPMSolverSinglestepScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.PNDMScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.KDPM2DiscreteScheduler,
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
        "euler": diffusers.EDMEulerScheduler,
        "dpmsolver++": diffusers.EDMDPMSolverMultistepScheduler,
    },
    auto={"EDMEulerScheduler": "heun"},
)
EDM_CHECKPOINT = Family(  # NVlabs' files name a preconditioning where diffusers' name a scheduler
    by_name={"heun": EdmHeun},
    auto={"EDMPrecond": "heun", "VPPrecond": "heun", "VEPrecond": "heun"},
)
FLOW = Family(
    by_name={
        "heun": diffusers.FlowMatchHeunDiscreteScheduler,
        "euler": diffusers.FlowMatchEulerDiscreteScheduler,
    }
)
CONSISTENCY = Family(by_name={}, also=(diffusers.CMStochasticIterativeScheduler,))
FAMILIES = (DISCRETE, EDM, EDM_CHECKPOINT, FLOW, CONSISTENCY)


def choose_sampler(
    class_name: str | None, config: Mapping[str, Any], sampler: Sampler, where: str
) -> OdeSampler:
    """Return the sampler that the settings mean for a teacher.

    Args:
        class_name: The teacher's scheduler, as `model_index.json` names it, or the preconditioning
            of an EDM checkpoint.
        config: What is in `scheduler_config.json`, or `EdmHeun.from_config` takes.
        sampler: The settings.
        where: The teacher, for messages.

    Raises:
        InputError: If the scheduler draws noise, is unknown or does not go with the settings.
    """
    for family in FAMILIES:
        if class_name is not None and class_name in {*family.serving, *family.noisy, *family.auto}:
            break
    else:
        known = ", ".join(name for family in FAMILIES for name in family.serving)
        raise InputError(
            f"expected a deterministic scheduler in {where}, got {class_name}; these serve: {known}"
        )
    teacher = f"{class_name} in {where}"
    _check(family, config, sampler, teacher)
    own = family.auto.get(class_name, class_name)
    name = own if sampler.name == "auto" else sampler.name
    kind = (family.by_name | family.serving).get(name)
    ode = None if kind is None else _make(kind, config, sampler, teacher)
    if ode is None:
        raise InputError(
            f"expected a deterministic scheduler in {where}, got {class_name}, which draws noise "
            f"at every step; replace it with one of --sampler {', '.join(family.by_name)}"
        )
    return ode


def _check(family: Family, config: Mapping[str, Any], sampler: Sampler, teacher: str) -> None:
    """Refuse what the family as a whole cannot do."""
    if sampler.name not in {"auto", *family.by_name}:
        names = ", ".join(family.by_name) or "auto"
        raise InputError(f"expected --sampler {names} for {teacher}, got {sampler.name}")
    if (family is CONSISTENCY) != (sampler.steps == 1):
        steps = "1 sampler step" if family is CONSISTENCY else "at least 2 sampler steps"
        raise InputError(
            f"expected {steps} for {teacher}, got {sampler.steps}; set --num_inference_steps"
        )
    if sampler.name != "auto" and (missing := sorted({*family.shared} - config.keys())):
        raise InputError(
            f"expected {' and '.join(missing)} in the settings of {teacher}, got none; "
            "defaults differ between schedulers"
        )


def _make(
    kind: type, config: Mapping[str, Any], sampler: Sampler, teacher: str
) -> OdeSampler | None:
    """Return a sampler with the teacher's settings; None if it would draw noise."""
    try:
        if not issubclass(kind, ConfigMixin):
            return kind.from_config(config, sampler.steps)
        changes: dict[str, Any] = {"variance_type": None}  # the teacher cuts a learned variance off
        if sampler.name != "auto":  # the deterministic one of two variants
            changes |= {"algorithm_type": "dpmsolver++", "stochastic_sampling": False}
        # The scheduler's arguments, as diffusers' own `from_config` finds them.
        arguments = kind.extract_init_dict(dict(config), **changes)[0]
        sde = str(arguments.get("algorithm_type")).startswith("sde")
        if sde or arguments.get("stochastic_sampling"):
            return None
        return Scheduled(kind=kind, arguments=arguments, steps=sampler.steps)
    except (ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"expected settings of {teacher} that {kind.__name__} can sample in {sampler.steps} "
            f"steps, got: {reason}; choose another --sampler"
        ) from error
