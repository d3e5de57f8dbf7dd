"""Teachers with any scheduler, network or home: known answers, diffusers' own loops, refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.consistency_models.pipeline_consistency_models import (
    ConsistencyModelPipeline,
)
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from torch import Tensor

from data.manifest import open_data_set, read_manifest
from data.teachers import (
    SHIPPED,
    DiffusersTeacher,
    Execution,
    Sampler,
    Teacher,
    load_vae,
    open_teacher,
)
from data.teachers.ode import FAMILIES, choose_solver
from data.writer import describe
from get import GETPipeline
from get.errors import InputError
from get.noise import draw

from .problems import as_users_run_it as as_users_run_it
from .problems import seeded, tiny_get
from .test_teachers import change_a_weight, edit, tiny_unet

# Half of the schedulers of diffusers 0.42 hand torch tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

BETAS: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
SERVING = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    DEISMultistepScheduler,
    UniPCMultistepScheduler,
    partial(HeunDiscreteScheduler, **BETAS),
    EulerDiscreteScheduler,
    PNDMScheduler,
    LMSDiscreteScheduler,
    partial(KDPM2DiscreteScheduler, **BETAS),
    EDMEulerScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    CMStochasticIterativeScheduler,
]
EVERY_SCHEDULER = pytest.mark.parametrize(
    "scheduler", SERVING, indirect=True, ids=lambda s: getattr(s, "func", s).__name__
)
ONE = "CMStochasticIterativeScheduler"


@pytest.fixture
def scheduler(request: pytest.FixtureRequest) -> Any:
    return request.param()


def few(scheduler: Any, **options: Any) -> Sampler:
    """Return as few steps as mean something."""
    return Sampler(steps=1 if type(scheduler).__name__ == ONE else 4, **options)


def saved(scheduler: Any) -> dict[str, Any]:
    return json.loads(scheduler.to_json_string())


def save_unet(folder: Path, scheduler: Any, unet: UNet2DModel | None = None) -> Path:
    AnyPipeline(unet or tiny_unet(None), scheduler).save_pretrained(folder)
    return folder


class AnyPipeline(ConsistencyModelPipeline):
    """Any UNet and scheduler, saved as given (`DDIMPipeline` converts the scheduler)."""


def save_dit(folder: Path, num_classes: int = 1000) -> Path:
    """Save a tiny DiT of 8x8 latents with a learned variance, and its VAE of 16x16 images."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, num_embeds_ada_norm=num_classes, norm_num_groups=4,
    )  # fmt: skip
    scheduler: Any = DDIMScheduler(clip_sample=False)
    DiTPipeline(transformer, tiny_vae(), scheduler).save_pretrained(folder)
    return folder


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16,
        scaling_factor=0.5,
    )  # fmt: skip


def sample(teacher: Teacher, count: int = 3) -> Tensor:
    return teacher(*draw(0, range(count), teacher.image_shape, teacher.num_classes))


# ------------------------------------------------------------------ known answers


def unit_noise() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=seeded(1))


def knows_the_image(image: Tensor, scheduler: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the raw network, in the scheduler's parametrisation, of a data set of one image."""
    name, c = type(scheduler).__name__, scheduler.config
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = (1 - betas).cumprod(0)

    def discrete(x: Tensor, time: Tensor) -> Tensor:
        low, share = time.long(), (time % 1).double()  # solvers of second order stop in between
        alpha = alphas[low] ** (1 - share) * alphas[(low + 1).clamp(max=999)] ** share
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
    steps = 1 if type(scheduler).__name__ == ONE else 60
    solver = choose_solver(
        type(scheduler).__name__, saved(scheduler), Sampler(steps=steps), "the teacher"
    )
    made = solver(knows_the_image(image, scheduler), noise)
    # Some end at DDPM's lowest level, where a hundredth, sqrt(1e-4), of the noise is left.
    left = 0.0102 * float(noise.abs().max())
    torch.testing.assert_close(made, image.expand(2, -1, -1, -1), rtol=0, atol=left)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "heun", "euler"])
def test_every_method_that_can_be_named_samples_a_ddpm(name: Any) -> None:
    image, noise = torch.rand(1, 3, 4, 4, generator=seeded(0)), unit_noise()
    scheduler = DDPMScheduler()
    sampler = Sampler(steps=20, name=name)
    solver = choose_solver("DDPMScheduler", saved(scheduler), sampler, "the teacher")
    made = solver(knows_the_image(image, scheduler), noise)
    torch.testing.assert_close(made, image.expand(2, -1, -1, -1), rtol=0, atol=0.03)
    assert solver.evaluations == (39 if name == "heun" else 20)


def test_a_learned_variance_does_not_make_latents_images_of_three_channels() -> None:
    """The scheduler would cut them off itself, and at three channels whatever the image has."""
    config = saved(DPMSolverMultistepScheduler(variance_type="learned_range"))
    solver = choose_solver("DPMSolverMultistepScheduler", config, Sampler(steps=3), "the teacher")
    assert solver(lambda x, time: x, torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2)


# ------------------------------------------------------------------ determinism


@EVERY_SCHEDULER
def test_an_image_depends_on_its_noise_only_and_nothing_is_drawn(
    scheduler: Any, tmp_path: Path
) -> None:
    teacher = open_teacher(save_unet(tmp_path, scheduler), few(scheduler), "cpu")
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
    assert known - {"EdmHeun"} == {type(make()).__name__ for make in SERVING}


# ------------------------------------------------------------------ diffusers' own loops


PARITY: dict[str, tuple[Any, Any, Sampler]] = {  # what lies in the folder, theirs, our settings
    "DDIM": (DDIMScheduler(), DDIMScheduler, Sampler(steps=4)),
    "DDIM of a DDPM": (
        DDPMScheduler(clip_sample=False), DDIMScheduler, Sampler(steps=4, name="ddim")
    ),
    "DPM-Solver++": (DPMSolverMultistepScheduler(), DPMSolverMultistepScheduler, Sampler(steps=4)),
    "DPM-Solver++ of a DDPM": (
        DDPMScheduler(beta_end=0.03, variance_type="fixed_large"), DPMSolverMultistepScheduler,
        Sampler(steps=4, name="dpmsolver++"),
    ),
    "Euler": (EulerDiscreteScheduler(), EulerDiscreteScheduler, Sampler(steps=4)),
    "Euler of an SDE": (
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), EulerDiscreteScheduler,
        Sampler(steps=4, name="euler"),
    ),
    "EDM Euler": (EDMEulerScheduler(), EDMEulerScheduler, Sampler(steps=4, name="euler")),
    "EDM DPM-Solver++": (
        EDMEulerScheduler(sigma_data=0.6), EDMDPMSolverMultistepScheduler,
        Sampler(steps=4, name="dpmsolver++"),
    ),
    "consistency": (
        CMStochasticIterativeScheduler(), CMStochasticIterativeScheduler, Sampler(steps=1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize(("there", "theirs", "sampler"), PARITY.values(), ids=PARITY)
def test_images_are_those_of_diffusers_own_loop(
    num_classes: int | None, there: Any, theirs: Any, sampler: Sampler, tmp_path: Path
) -> None:
    """`ConsistencyModelPipeline` runs any scheduler whose step takes a generator."""
    unet = tiny_unet(num_classes).eval()
    teacher = open_teacher(save_unet(tmp_path, there, unet), sampler, "cpu")
    noise, labels = draw(0, range(3), teacher.image_shape, num_classes)
    pipeline: Any = ConsistencyModelPipeline(
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


def test_images_are_those_of_ddim_pipeline(tmp_path: Path) -> None:
    unet = tiny_unet(None).eval()
    teacher = open_teacher(save_unet(tmp_path, DDIMScheduler(), unet), Sampler(steps=5), "cpu")
    pipeline: Any = DDIMPipeline(unet, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(2, seeded(0), num_inference_steps=5, output_type="np").images
    made = teacher(torch.randn(2, 3, 8, 8, generator=seeded(0)), None)
    shown = (made / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(shown, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_latents_are_those_of_dit_pipeline_with_guidance(
    guidance_scale: float, tmp_path: Path
) -> None:
    teacher = open_teacher(
        save_dit(tmp_path), Sampler(steps=3, guidance_scale=guidance_scale), "cpu"
    )
    pipeline: Any = DiTPipeline.from_pretrained(tmp_path, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[Tensor] = []
    decode = pipeline.vae.decoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        pipeline([3, 999], guidance_scale, seeded(0), num_inference_steps=3)
        decode.remove()
        latents = teacher(torch.randn(2, 4, 8, 8, generator=seeded(0)), torch.tensor([3, 999]))
        expected = pipeline.vae.post_quant_conv(latents / 0.5)
    torch.testing.assert_close(expected, seen[0], rtol=1e-4, atol=1e-4)
    assert teacher.evaluations == (3 if guidance_scale == 1 else 6)
    assert teacher.image_shape == (4, 8, 8)
    assert teacher.num_classes == 1000


# ------------------------------------------------------------------ networks


def test_the_learned_variance_of_a_unet_is_dropped(tmp_path: Path) -> None:
    plain, double = tiny_unet(None), tiny_unet(None)
    double.conv_out = torch.nn.Conv2d(8, 6, 3, padding=1)
    double.register_to_config(out_channels=6)
    first = {k: torch.cat([v, v + 1]) for k, v in plain.conv_out.state_dict().items()}
    double.conv_out.load_state_dict(first)
    saved = DDPMScheduler(variance_type="learned_range")
    made = [
        sample(
            open_teacher(
                save_unet(tmp_path / name, saved, unet), Sampler(steps=3, name="dpmsolver++"), "cpu"
            )
        )
        for name, unet in (("plain", plain), ("double", double))
    ]
    torch.testing.assert_close(made[0], made[1])


def test_images_need_not_be_square(tmp_path: Path) -> None:
    unet = tiny_unet(None)
    unet.register_to_config(sample_size=(8, 16))
    teacher = open_teacher(save_unet(tmp_path, DDIMScheduler(), unet), Sampler(steps=2), "cpu")
    assert sample(teacher).shape == (3, *teacher.image_shape) == (3, 3, 8, 16)


def test_weights_in_half_precision_compute_in_float32(tmp_path: Path) -> None:
    unet = tiny_unet(None).half()
    teacher = DiffusersTeacher(save_unet(tmp_path, DDIMScheduler(), unet), Sampler(steps=2), "cpu")
    assert teacher.network.dtype == torch.float32
    assert sample(teacher).dtype == torch.float32


def test_a_repository_may_keep_its_only_network_at_the_root(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "parts", DDIMScheduler())
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*.*"):
        if file.is_file():
            shutil.copy(file, flat / file.name)
    here, there = (open_teacher(f, Sampler(steps=2), "cpu") for f in (folder, flat))
    assert here.fingerprint == there.fingerprint


def test_the_null_label_is_the_one_after_the_last_class(tmp_path: Path) -> None:
    teacher = DiffusersTeacher(
        save_dit(tmp_path, num_classes=7), Sampler(steps=2, guidance_scale=3.0), "cpu"
    )
    table = teacher.network.get_submodule(
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table"
    )
    used: list[int] = []
    table.register_forward_hook(lambda m, args, out: used.extend(args[0].tolist()))
    sample(teacher, 2)
    assert teacher.num_classes == 7
    labels = draw(0, range(2), teacher.image_shape, 7)[1]
    assert labels is not None
    assert set(used) == {7, *labels.tolist()}


# ------------------------------------------------------------------ execution


@pytest.mark.parametrize("name", ["auto", "dpmsolver++"])
def test_bfloat16_changes_the_network_a_little_and_the_state_not_at_all(
    name: Any, tmp_path: Path
) -> None:
    folder = save_unet(tmp_path, EDMEulerScheduler())
    sampler = Sampler(steps=4, name=name)
    full = DiffusersTeacher(folder, sampler, "cpu")
    half = DiffusersTeacher(folder, sampler, "cpu", Execution(mixed_precision="bf16"))
    assert half.network.dtype == torch.float32
    difference = (sample(half) - sample(full)).abs().max()
    assert 0 < difference < 0.05 * sample(full).abs().max()
    assert sample(half).dtype == torch.float32


def test_the_memory_format_changes_the_layout_only(tmp_path: Path) -> None:
    folder = save_unet(tmp_path, DDIMScheduler())
    last = Execution(memory_format="channels_last")
    plain, other = (DiffusersTeacher(folder, few(0), "cpu", e) for e in (Execution(), last))
    weight = other.network.conv_in.weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sample(plain), sample(other), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images(tmp_path: Path) -> None:
    folder = save_unet(tmp_path, DDIMScheduler())
    plain, other = (
        open_teacher(folder, few(0), "cpu", Execution(compile=c)) for c in (False, True)
    )
    torch.testing.assert_close(sample(plain), sample(other), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ fingerprint and manifest


def fingerprint(
    folder: Path, sampler: Sampler | None = None, execution: Execution | None = None
) -> str:
    sampler, execution = sampler or Sampler(steps=4), execution or Execution()
    return open_teacher(folder, sampler, "cpu", execution).fingerprint


def test_the_fingerprint_tells_all_settings_apart_and_nothing_else(tmp_path: Path) -> None:
    dit, scheduler_config = save_dit(tmp_path / "dit"), "scheduler/scheduler_config.json"
    copy = shutil.copytree(dit, tmp_path / "elsewhere")
    assert fingerprint(copy) == fingerprint(dit)
    found = [fingerprint(dit)]
    found += [fingerprint(dit, Sampler(steps=n)) for n in (3, 5)]
    found += [fingerprint(dit, Sampler(steps=4, name="euler"))]
    found += [fingerprint(dit, Sampler(steps=4, guidance_scale=g)) for g in (2.0, 4.0)]
    for execution in (
        Execution(mixed_precision="bf16"), Execution(memory_format="channels_last"),
        Execution(compile=True),
    ):  # fmt: skip
        found += [fingerprint(dit, execution=execution)]
    edit(copy / scheduler_config, beta_end=0.03)
    found += [fingerprint(copy)]
    edit(copy / "transformer" / "config.json", norm_eps=1e-4)
    found += [fingerprint(copy)]
    assert len(set(found)) == len(found)


def test_the_fingerprint_tells_weights_and_scheduler_classes_apart(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "unet", DPMSolverMultistepScheduler())
    found = [fingerprint(folder)]
    change_a_weight(folder)
    found += [fingerprint(folder)]
    index = json.loads((folder / "model_index.json").read_text())
    edit(folder / "model_index.json", scheduler=["diffusers", "UniPCMultistepScheduler"])
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    found += [fingerprint(folder)]
    assert len(set(found)) == 3


def test_settings_leave_defaults_out_and_can_be_read_back() -> None:
    assert Sampler().settings() == {"steps": 18}
    assert Execution().settings() == {}
    for settings in (Sampler(steps=7), Sampler(steps=4, name="ddim", guidance_scale=1.5)):
        assert Sampler(**json.loads(json.dumps(settings.settings()))) == settings
    bf16 = Execution(mixed_precision="bf16", compile=True)
    assert bf16.settings() == {"mixed_precision": "bf16", "compile": True}
    assert Execution(**bf16.settings()) == bf16


def test_the_manifest_of_latents_names_their_vae(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    bf16 = Execution(mixed_precision="bf16")
    teacher = DiffusersTeacher(folder, Sampler(steps=3, guidance_scale=2.0), "cpu", bf16)
    settings: dict[str, Any] = {"seed": 0, "teacher_batch_size": 2, "pairs_per_shard": 2}
    manifest = describe(teacher, **settings, image_format="npy32")
    assert (manifest.vae, manifest.sampler) == (str(folder), {"steps": 3, "guidance_scale": 2.0})
    assert manifest.execution == {"mixed_precision": "bf16"}
    assert manifest.image_shape == (4, 8, 8)
    assert teacher.latent_scale == 0.5
    vae = load_vae(manifest.vae or "")
    for name, tensor in tiny_vae().state_dict().items():
        assert torch.equal(vae.state_dict()[name], tensor)
    with pytest.raises(InputError, match="expected 1 or 3 channels for image_format png, got 4"):
        describe(teacher, **settings, image_format="png")


def test_a_manifest_from_before_vae_and_execution_is_still_that_of_its_pairs(
    tmp_path: Path,
) -> None:
    teacher = open_teacher(SHIPPED / "digits-teacher", Sampler(), "cpu")
    manifest = describe(
        teacher, seed=0, teacher_batch_size=2, pairs_per_shard=2, image_format="png"
    )
    old = {k: v for k, v in asdict(manifest).items() if k not in ("vae", "execution")}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    assert read_manifest(tmp_path) == manifest
    assert Sampler(**read_manifest(tmp_path).sampler) == teacher.sampler
    open_data_set(tmp_path, manifest)


def test_a_student_of_latents_decodes_them_by_the_teachers_vae(tmp_path: Path) -> None:
    vae = load_vae(str(save_dit(tmp_path / "dit")))
    model = tiny_get(channels=4)
    GETPipeline(model, vae).save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    noise = torch.randn(2, 4, 8, 8, generator=seeded(0))
    loaded = GETPipeline.from_pretrained(tmp_path / "run", use_safetensors=True)
    (images,) = loaded(latents=noise, output_type="pt", return_dict=False)
    with torch.no_grad():
        (expected,) = vae.decode(model(noise) / 0.5, return_dict=False)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1))


# ------------------------------------------------------------------ refusals


NAMES = "ddim, dpmsolver\\+\\+, heun, euler"
REFUSED: dict[str, tuple[Any, Sampler, str]] = {
    "DDPM": (DDPMScheduler(), Sampler(), f"DDPMScheduler, which draws noise .* {NAMES}$"),
    "Euler ancestral": (EulerAncestralDiscreteScheduler, Sampler(), f"draws noise .* {NAMES}$"),
    "KDPM2 ancestral": (KDPM2AncestralDiscreteScheduler, Sampler(), f"draws noise .* {NAMES}$"),
    "SDE": (
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), Sampler(),
        f"DPMSolverMultistepScheduler, which draws noise .* {NAMES}$",
    ),
    "stochastic flow": (
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), Sampler(),
        "draws noise .* heun, euler$",
    ),
    "LCM": (LCMScheduler(), Sampler(), "got LCMScheduler; these serve: DDIMScheduler, DPM.*, CM"),
    "consistency, many steps": (
        CMStochasticIterativeScheduler(), Sampler(), "1 sampler step for CM.* got 18"
    ),
    "diffusion, one step": (DDIMScheduler(), Sampler(steps=1), "at least 2 sampler steps .* got 1"),
    "EDM, one step": (EDMEulerScheduler(), Sampler(steps=1), "at least 2 sampler steps .* got 1"),
    "another family's method": (
        EDMEulerScheduler(), Sampler(name="ddim"),
        "--sampler heun, euler, dpmsolver\\+\\+ for EDMEulerScheduler .* got ddim",
    ),
    "a consistency model's method": (
        CMStochasticIterativeScheduler(), Sampler(steps=1, name="euler"), "--sampler auto .* euler"
    ),
    "resolution-dependent shift": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), Sampler(steps=4),
        "settings of FlowMatchEulerDiscreteScheduler .* got: .*mu",
    ),
    "a prediction that the method lacks": (
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        Sampler(steps=4, name="ddim"), "that DDIMScheduler can sample in 4 steps, got: ",
    ),
    "more steps than there are": (
        DDIMScheduler(num_train_timesteps=10), Sampler(steps=11), "in 11 steps, got: "
    ),
    "guidance": (DDIMScheduler(), Sampler(guidance_scale=2.0), "guidance_scale 1 .* got 2.0; it"),
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


INDEX, UNET = "model_index.json", "unet/config.json"
WRONG_PARTS: dict[str, tuple[str, dict[str, object], str]] = {
    "text": (INDEX, {"text_encoder": ["transformers", "CLIPTextModel"]}, "CLIPTextModel"),
    "VQ-VAE": (INDEX, {"vqvae": ["diffusers", "VQModel"]}, "vqvae VQModel"),
    "other VAE": (INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}, "vae AutoencoderTiny"),
    "other network": (INDEX, {"unet": ["diffusers", "UNet2DConditionModel"]}, "Condition"),
    "no network": (INDEX, {"unet": [None, None]}, "got scheduler DDIMScheduler"),
    "no size": (UNET, {"sample_size": None}, "got sample_size None"),
}


@pytest.mark.parametrize(("file", "fields", "message"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_a_folder_with_other_parts_is_refused(
    file: str, fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    edit(save_unet(tmp_path, DDIMScheduler()) / file, **fields)
    with pytest.raises(InputError, match=f"^expected .*{tmp_path}.*{message}"):
        open_teacher(tmp_path, Sampler(steps=2), "cpu")


def test_labels_that_are_no_class_indices_are_refused(tmp_path: Path) -> None:
    settings = {k: v for k, v in tiny_unet(None).config.items() if not k.startswith("_")}
    unet = UNet2DModel(**settings | {"class_embed_type": "timestep"})
    save_unet(tmp_path, DDIMScheduler(), unet)
    with pytest.raises(InputError, match=f"class_embed_type in {tmp_path}, got timestep"):
        open_teacher(tmp_path, Sampler(steps=2), "cpu")


def test_betas_left_to_a_default_are_refused_where_another_class_would_fill_them_in(
    tmp_path: Path,
) -> None:
    path = save_unet(tmp_path, DDIMScheduler()) / "scheduler" / "scheduler_config.json"
    path.write_text("{}")
    open_teacher(tmp_path, Sampler(steps=2), "cpu")
    with pytest.raises(InputError, match=f"expected beta_end and beta_start .* in {tmp_path}, got"):
        open_teacher(tmp_path, Sampler(steps=2, name="heun"), "cpu")


def test_labels_are_given_exactly_to_a_conditional_teacher(tmp_path: Path) -> None:
    plain = open_teacher(save_unet(tmp_path / "a", DDIMScheduler()), few(0), "cpu")
    classes = open_teacher(save_unet(tmp_path / "b", DDIMScheduler(), tiny_unet(5)), few(0), "cpu")
    noise = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InputError, match="expected no labels for this teacher, got some"):
        plain(noise, torch.tensor([0]))
    with pytest.raises(InputError, match="expected labels for this teacher, got none"):
        classes(noise, None)


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
def test_an_edm_checkpoint_is_opened_as_one_and_takes_no_execution_settings(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("{}")
    path = tmp_path / name if name == "network.pkl" else tmp_path
    with pytest.raises(InputError, match=f"no execution settings .*{path}, got compile; it runs"):
        open_teacher(path, Sampler(), "cpu", Execution(compile=True))
    with pytest.raises(InputError, match="EDM"):
        open_teacher(path, Sampler(name="ddim"), "cpu")


# ------------------------------------------------------------------ the hub


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "a/b/c", "../b"])
def test_a_path_that_does_not_exist_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=f"^expected a teacher in {source}, got nothing there;"):
        open_teacher(source, Sampler(), "cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; the tests have no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("as_path", [False, True])
def test_a_repository_that_cannot_be_reached_is_refused_in_one_line(as_path: bool) -> None:
    source = Path("owner/name") if as_path else "owner/name"
    with pytest.raises(InputError, match=r"^expected a teacher in owner/name, got neither") as r:
        open_teacher(source, Sampler(), "cpu")
    assert "\n" not in str(r.value)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
def test_a_downloaded_repository_is_the_same_teacher_as_its_folder(
    revision: str, cache: Path, tmp_path: Path
) -> None:
    folder, commit = save_dit(tmp_path / "dit"), "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs" / revision).parent.mkdir(parents=True)
    (repository / "refs" / revision).write_text(commit)
    source = "owner/name" if revision == "main" else f"owner/name@{revision}"
    teacher = DiffusersTeacher(source, few(0), "cpu")
    assert teacher.fingerprint == fingerprint(folder)
    assert teacher.vae_source == source
    assert load_vae(source).config["scaling_factor"] == 0.5


@pytest.mark.network
def test_the_ddpm_of_the_hub_makes_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    teacher = open_teacher("google/ddpm-cifar10-32", Sampler(steps=10, name="ddim"), "cpu")
    assert (teacher.image_shape, teacher.num_classes) == ((3, 32, 32), None)
    images = sample(teacher)
    assert images.abs().max() <= 1.01  # clip_sample of its own configuration
    assert 0.3 < images.std() < 0.8
