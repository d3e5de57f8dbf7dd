"""Samplers of teachers: known answers with any scheduler, and diffusers' own loops."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import diffusers as hf
import pytest
import torch
from torch import Tensor

from data.teachers.edm.precondition import Predict
from data.teachers.ode import EDM, EDM_CHECKPOINT, FAMILIES, choose_sampler
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get.noise import draw

from .diffusers_files import sample, save_unet, tiny_unet
from .edm_files import save_kind
from .problems import seeded

# Half of the schedulers of diffusers 0.42 hand torch tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

BETAS: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
SERVING = [
    hf.DDIMScheduler,
    hf.DPMSolverMultistepScheduler,
    hf.DPMSolverSinglestepScheduler,
    hf.DEISMultistepScheduler,
    hf.UniPCMultistepScheduler,
    partial(hf.HeunDiscreteScheduler, **BETAS),
    hf.EulerDiscreteScheduler,
    hf.PNDMScheduler,
    hf.LMSDiscreteScheduler,
    partial(hf.KDPM2DiscreteScheduler, **BETAS),
    hf.EDMEulerScheduler,
    hf.EDMDPMSolverMultistepScheduler,
    hf.FlowMatchEulerDiscreteScheduler,
    hf.FlowMatchHeunDiscreteScheduler,
    hf.CMStochasticIterativeScheduler,
]
EVERY_SCHEDULER = pytest.mark.parametrize(
    "scheduler", SERVING, indirect=True, ids=lambda s: getattr(s, "func", s).__name__
)
ONE = "CMStochasticIterativeScheduler"


@pytest.fixture
def scheduler(request: pytest.FixtureRequest) -> Any:
    return request.param()


def steps(scheduler: Any, many: int) -> Sampler:
    """Return so many steps; a consistency model has one only."""
    return Sampler(steps=1 if type(scheduler).__name__ == ONE else many)


def saved(scheduler: Any) -> dict[str, Any]:
    return json.loads(scheduler.to_json_string())


# ------------------------------------------------------------------ known answers


def unit_noise() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=seeded(1))


def knows_the_image(image: Tensor, scheduler: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the raw network, in the scheduler's parametrisation, of a data set of one image."""
    name, c = type(scheduler).__name__, scheduler.config
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = (1 - betas).cumprod(0)

    def discrete(x: Tensor, time: Tensor) -> Tensor:
        low, between = time.long(), (time % 1).double()  # samplers of second order stop in between
        alpha = alphas[low] ** (1 - between) * alphas[(low + 1).clamp(max=999)] ** between
        alpha = alpha.view(-1, 1, 1, 1)
        return ((x - alpha.sqrt() * image) / (1 - alpha).sqrt()).float()

    def flow(x: Tensor, time: Tensor) -> Tensor:
        return (x - image) / (time / 1000).view(-1, 1, 1, 1)

    def edm(x: Tensor, time: Tensor) -> Tensor:
        sigma = (4 * time / (1000 if name == ONE else 1)).exp().view(-1, 1, 1, 1)
        norm = (sigma**2 + c["sigma_data"] ** 2).sqrt()
        least = c["sigma_min"] if name == ONE else 0  # a consistency model is the identity there
        skip = c["sigma_data"] ** 2 / ((sigma - least) ** 2 + c["sigma_data"] ** 2)
        out = (sigma - least) * c["sigma_data"] / norm
        return ((image - skip * norm * x) / out).float()

    return flow if "Flow" in name else edm if "EDM" in name or name == ONE else discrete


@EVERY_SCHEDULER
def test_the_network_that_knows_the_one_image_makes_it(scheduler: Any) -> None:
    image, noise = torch.rand(1, 3, 4, 4, generator=seeded(0)), unit_noise()
    sampler = steps(scheduler, 60)
    ode = choose_sampler(type(scheduler).__name__, saved(scheduler), sampler, "the teacher")
    made = ode(knows_the_image(image, scheduler), noise)
    # Some end at DDPM's lowest level, where a hundredth, sqrt(1e-4), of the noise remains.
    tolerance = 0.0102 * float(noise.abs().max())
    torch.testing.assert_close(made, image.expand(2, -1, -1, -1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "heun", "euler"])
def test_every_method_that_can_be_named_samples_a_ddpm(name: Any) -> None:
    image, noise = torch.rand(1, 3, 4, 4, generator=seeded(0)), unit_noise()
    scheduler = hf.DDPMScheduler()
    sampler = Sampler(steps=20, name=name)
    ode = choose_sampler("DDPMScheduler", saved(scheduler), sampler, "the teacher")
    made = ode(knows_the_image(image, scheduler), noise)
    torch.testing.assert_close(made, image.expand(2, -1, -1, -1), rtol=0, atol=0.03)
    assert ode.evaluations == (39 if name == "heun" else 20)


def test_a_learned_variance_does_not_make_latents_images_of_three_channels() -> None:
    """The scheduler would cut them off itself, and at three channels whatever the image has."""
    config = saved(hf.DPMSolverMultistepScheduler(variance_type="learned_range"))
    ode = choose_sampler("DPMSolverMultistepScheduler", config, Sampler(steps=3), "the teacher")
    assert ode(lambda x, time: x, torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2)


# ------------------------------------------------------------------ a new one


class Jump:
    """A sampler that no table has yet: one step of Euler's method from the noise level 1."""

    evaluations = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int) -> Self:
        assert {"sigma_min", "sigma_max", "rho"} <= config.keys()
        return cls()

    def __call__(self, predict: Predict, noise: Tensor) -> Tensor:
        return noise - predict(noise, torch.zeros(len(noise)))


@pytest.mark.parametrize("family", [EDM, EDM_CHECKPOINT], ids=["diffusers", "checkpoint"])
def test_a_new_sampler_is_a_class_and_an_entry_in_the_table(family, monkeypatch, tmp_path):
    if family is EDM:
        save_unet(tmp_path / "teacher", hf.EDMEulerScheduler())
    else:
        save_kind(tmp_path / "teacher", "vp in EDM")
    monkeypatch.setitem(family.by_name, "ddim", Jump)
    teachers = [
        open_teacher(tmp_path / "teacher", Sampler(steps=4, name=name), "cpu")
        for name in ("ddim", "auto")
    ]
    assert [teacher.evaluations for teacher in teachers] == [1, 7]
    assert teachers[0].fingerprint != teachers[1].fingerprint
    assert not torch.equal(*map(sample, teachers))


# ------------------------------------------------------------------ determinism


@EVERY_SCHEDULER
def test_an_image_depends_on_its_noise_only_and_nothing_is_drawn(scheduler, tmp_path):
    teacher = open_teacher(save_unet(tmp_path, scheduler), steps(scheduler, 4), "cpu")
    state = torch.manual_seed(1).get_state()
    first = sample(teacher)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(sample(teacher), first)
    noise, _ = draw(0, range(3), teacher.image_shape)
    alone = torch.cat([teacher(row[None], None) for row in noise])
    torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-4 * float(first.abs().max()))
    assert (first.dtype, first.shape) == (torch.float32, (3, 3, 8, 8))
    assert first.isfinite().all()
    assert first.std() > 0.01


def test_the_table_of_schedulers_that_serve_is_the_one_tested_here() -> None:
    known = {name for family in FAMILIES for name in family.serving}
    assert known == {type(make()).__name__ for make in SERVING}


# ------------------------------------------------------------------ diffusers' own loops


FOUR: dict[str, Any] = {"steps": 4}
PARITY: dict[str, tuple[Any, Any, dict[str, Any]]] = {  # what is saved, theirs, our settings
    "DDIM": (hf.DDIMScheduler(), hf.DDIMScheduler, {}),
    "DDIM of a DDPM": (hf.DDPMScheduler(clip_sample=False), hf.DDIMScheduler, {"name": "ddim"}),
    "DPM-Solver++": (hf.DPMSolverMultistepScheduler(), hf.DPMSolverMultistepScheduler, {}),
    "DPM-Solver++ of a DDPM": (
        hf.DDPMScheduler(beta_end=0.03, variance_type="fixed_large"),
        hf.DPMSolverMultistepScheduler, {"name": "dpmsolver++"},
    ),
    "Euler": (hf.EulerDiscreteScheduler(), hf.EulerDiscreteScheduler, {}),
    "Euler of an SDE": (
        hf.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        hf.EulerDiscreteScheduler, {"name": "euler"},
    ),
    "EDM Euler": (hf.EDMEulerScheduler(), hf.EDMEulerScheduler, {"name": "euler"}),
    "EDM DPM-Solver++": (
        hf.EDMEulerScheduler(sigma_data=0.6),
        hf.EDMDPMSolverMultistepScheduler, {"name": "dpmsolver++"},
    ),
    "consistency": (
        hf.CMStochasticIterativeScheduler(), hf.CMStochasticIterativeScheduler, {"steps": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize(("there", "theirs", "settings"), PARITY.values(), ids=PARITY)
def test_images_are_those_of_diffusers_own_loop(num_classes, there, theirs, settings, tmp_path):
    """`ConsistencyModelPipeline` runs any scheduler whose step takes a generator."""
    unet, sampler = tiny_unet(num_classes).eval(), Sampler(**FOUR | settings)
    teacher = open_teacher(save_unet(tmp_path, there, unet), sampler, "cpu")
    noise, labels = draw(0, range(3), teacher.image_shape, num_classes)
    pipeline: Any = hf.ConsistencyModelPipeline(
        unet, theirs.from_pretrained(tmp_path, subfolder="scheduler")
    )
    pipeline.set_progress_bar_config(disable=True)
    raw: dict[str, Tensor] = {}
    pipeline(
        batch_size=3, latents=noise, class_labels=labels, num_inference_steps=sampler.steps,
        callback=lambda i, t, x: raw.update(image=x),
    )  # fmt: skip
    scale = float(raw["image"].abs().max())  # unclipped, a random network leaves [-1, 1] far
    torch.testing.assert_close(teacher(noise, labels), raw["image"], rtol=0, atol=1e-5 * scale)
