"""Tiny teachers of random weights, saved by diffusers itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.consistency_models.pipeline_consistency_models import (
    ConsistencyModelPipeline,
)
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.teachers.settings import Sampler
from data.teachers.teacher import Teacher
from get.noise import draw

FEW = Sampler(steps=4)


def tiny_unet(num_classes: int | None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=num_classes,
    )


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


@pytest.fixture(params=[None, 5], ids=["unconditional", "conditional"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a UNet under EDM preconditioning."""
    return save_unet(
        tmp_path / "teacher", EDMEulerScheduler(sigma_data=0.75), tiny_unet(request.param)
    )


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    change(weights := load_file(path))
    save_file(weights, path, {"format": "pt"})


def change_a_weight(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["conv_out.bias"][0].add_(1e-6))


def sample(teacher: Teacher, count: int = 3) -> Tensor:
    return teacher(*draw(0, range(count), teacher.image_shape, teacher.num_classes))
