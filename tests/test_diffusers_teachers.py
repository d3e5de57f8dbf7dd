"""Folders in diffusers format: diffusers' own pipelines, networks, parts, latents, damage."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from torch import Tensor

from data import SHIPPED
from data.data_set import open_data_set
from data.manifest import read_manifest
from data.teachers.diffusers_folder import load_vae
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from get import GETPipeline
from get.errors import InputError
from get.noise import draw

from .diffusers_files import (
    FEW,
    edit,
    edit_weights,
    sample,
    save_dit,
    save_unet,
    tiny_unet,
    tiny_vae,
)
from .diffusers_files import folder as folder
from .problems import seeded, tiny_get
from .shards import manifest_of

# Half of the schedulers of diffusers 0.42 hand torch tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


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
def test_latents_are_those_of_dit_pipeline_with_guidance(guidance_scale, tmp_path):
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
    few = Sampler(steps=3, name="dpmsolver++")
    folders = save_unet(tmp_path / "plain", saved, plain), save_unet(tmp_path / "2", saved, double)
    made = [sample(open_teacher(folder, few, "cpu")) for folder in folders]
    torch.testing.assert_close(made[0], made[1])


def test_images_need_not_be_square_and_half_weights_compute_in_float32(tmp_path: Path) -> None:
    unet = tiny_unet(None).half()
    unet.register_to_config(sample_size=(8, 16))
    teacher = open_teacher(save_unet(tmp_path, DDIMScheduler(), unet), Sampler(steps=2), "cpu")
    assert {p.dtype for p in teacher.network.parameters()} == {torch.float32}
    images = sample(teacher)
    assert images.shape == (3, *teacher.image_shape) == (3, 3, 8, 16)
    assert images.dtype == torch.float32


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
    teacher = open_teacher(
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


# ------------------------------------------------------------------ latents


def test_the_manifest_of_latents_names_their_vae(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    bf16 = Execution(mixed_precision="bf16")
    teacher = open_teacher(folder, Sampler(steps=3, guidance_scale=2.0), "cpu", bf16)
    manifest = manifest_of(teacher)
    assert (manifest.vae, manifest.sampler) == (str(folder), {"steps": 3, "guidance_scale": 2.0})
    assert manifest.execution == {"mixed_precision": "bf16"}
    assert manifest.image_shape == (4, 8, 8)
    vae = load_vae(manifest.vae or "")
    assert vae.config["scaling_factor"] == 0.5
    for name, tensor in tiny_vae().state_dict().items():
        assert torch.equal(vae.state_dict()[name], tensor)
    with pytest.raises(InputError, match="expected 1 or 3 channels for image_format png, got 4"):
        manifest_of(teacher, "png")


def test_a_manifest_from_before_vae_and_execution_is_still_that_of_its_pairs(tmp_path):
    teacher = open_teacher(SHIPPED / "digits-teacher", Sampler(), "cpu")
    manifest = manifest_of(teacher, "png")
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
def test_a_folder_with_other_parts_is_refused(file, fields, message, tmp_path):
    edit(save_unet(tmp_path, DDIMScheduler()) / file, **fields)
    with pytest.raises(InputError, match=f"^expected .*{tmp_path}.*{message}"):
        open_teacher(tmp_path, Sampler(steps=2), "cpu")


def test_labels_that_are_no_class_indices_are_refused(tmp_path: Path) -> None:
    settings = {k: v for k, v in tiny_unet(None).config.items() if not k.startswith("_")}
    unet = UNet2DModel(**settings | {"class_embed_type": "timestep"})
    save_unet(tmp_path, DDIMScheduler(), unet)
    with pytest.raises(InputError, match=f"class_embed_type in {tmp_path}, got timestep"):
        open_teacher(tmp_path, Sampler(steps=2), "cpu")


SCHEDULER, WEIGHTS = "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"
DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing folder": shutil.rmtree,
    "v-prediction": lambda f: edit(f / SCHEDULER, prediction_type="v_prediction"),
    "no sigma_data": lambda f: (f / SCHEDULER).write_text("{}"),
    "damaged index": lambda f: (f / "model_index.json").write_text('{"unet": ['),
    "damaged scheduler": lambda f: (f / SCHEDULER).write_text(""),
    "damaged network": lambda f: (f / "unet" / "config.json").write_text('{"sample'),
    "missing weights": lambda f: (f / WEIGHTS).unlink(),
    "cut weights": lambda f: (f / WEIGHTS).write_bytes(b"1"),
    "a missing tensor": lambda f: edit_weights(f, lambda weights: weights.pop("conv_out.bias")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_folder_that_is_no_such_teacher_is_refused_in_one_line(folder, damage):
    damage(folder)
    with pytest.raises(InputError, match=f"expected .* in {folder}.*, got:? ") as raised:
        open_teacher(folder, FEW, "cpu")
    assert "\n" not in str(raised.value)
