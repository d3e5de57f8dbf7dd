"""Train a diffusion teacher on real images: UNet2DModel under EDM preconditioning.

The result is a diffusers folder whose `unet/` and `scheduler/` any diffusers code can load; its
README.md card tells command, seed and figures. `--check` only checks such a folder.
Next: make_pairs.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import teachers

if __name__ == "__main__":
    cli.check_arguments(teachers)


from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from data.files import write_json
from data.real import Labelled, real_images
from data.teachers.edm.precondition import EdmPrecond, denoise
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get.cost import count_parameters
from get.errors import InputError
from get.muon import Muon
from get.noise import draw, step_seed
from pipeline.jobs.card import check_card, write_card
from pipeline.jobs.processes import check_processes
from pipeline.jobs.run import Run
from pipeline.recipes.settings_make import GROUPS, TeacherConfig
from pipeline.training.updates import Updates


def main(config: TeacherConfig) -> None:
    """Train a teacher, or check one."""
    if config.check:
        check(config.output_dir)
        return
    accelerator = Accelerator()
    check_processes(accelerator, at_most=1)
    train(config, accelerator)


def train(config: TeacherConfig, accelerator: Accelerator) -> None:
    """Train; the same command continues an unfinished run and does nothing after a finished one."""
    data = real_images(config.train_data_dir, "training")
    images, labels = data.images.to(accelerator.device), data.labels.to(accelerator.device)
    sigma_data = config.sigma_data or round(float(images.std()), 2)
    torch.manual_seed(config.seed)
    unet = build_unet(config, data).to(accelerator.device)
    updates = Updates(config, unet, build_optimizers(config, unet), name="unet")

    with Run(config, accelerator) as run:
        run.say(
            f"***** Training a teacher: {count_parameters(unet):,} parameters, "
            f"{len(images)} images of {tuple(images.shape[1:])}, sigma_data {sigma_data} *****"
        )
        start = run.restore(updates.state)
        for step in run.steps(
            start, updates.state, lambda folder, unet: save(folder, unet, config, sigma_data)
        ):
            generator = torch.Generator().manual_seed(step_seed(config.seed, step))
            chosen = torch.randint(len(images), (config.global_batch_size,), generator=generator)
            batch, classes = images[chosen], labels[chosen] if conditional(data) else None
            loss = edm_loss(unet, batch, classes, sigma_data, generator, config.noise)
            loss.backward()
            run.record(step, loss=loss, grad_norm=updates())
        if not (run.path / "card.json").exists():
            figures = {
                "parameters": count_parameters(unet),
                "sigma_data": sigma_data,
                **held_out_losses(config, updates.average.cpu(), sigma_data),
            }
            title = f"Diffusion teacher for {config.train_data_dir}"
            kind = "Class-conditional" if conditional(data) else "Unconditional"
            write_card(run, title, f"{kind} `UNet2DModel` under EDM preconditioning.", figures)
    print(f"teacher {config.output_dir}")


def conditional(data: Labelled) -> bool:
    """Say whether the data have more than one class."""
    return int(data.labels.max()) > 0


def build_unet(config: TeacherConfig, data: Labelled) -> UNet2DModel:
    """Build the raw network for images and classes like these.

    Raises:
        InputError: If the image size cannot be halved often enough.
    """
    channels, size = data.images.shape[1:3]
    levels = len(config.block_out_channels)
    if size % 2 ** (levels - 1):
        raise InputError(
            f"expected an image size that {levels} levels can halve, got {size}; "
            "resize the pictures or give fewer block_out_channels"
        )
    attention = "Attn" if config.attention else ""
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * (levels - 1) + (f"{attention}DownBlock2D",),
        up_block_types=(f"{attention}UpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=GROUPS,
        attention_head_dim=config.block_out_channels[-1],
        num_class_embeds=int(data.labels.max()) + 1 if conditional(data) else None,
    )


def build_optimizers(config: TeacherConfig, unet: UNet2DModel) -> dict[str, Optimizer] | None:
    """Return the optimisers by the names of their files in a checkpoint; None is the default."""
    if config.muon_learning_rate is None:
        return None
    others = dict(unet.named_parameters())
    outer = ("conv_in", "conv_out", "class_embedding")
    inner = [n for n, p in others.items() if p.ndim >= 2 and not n.startswith(outer)]
    muon = Muon([others.pop(name) for name in inner], config.muon_learning_rate)
    betas = (0.9, config.adam_beta2)
    adamw = AdamW(others.values(), config.learning_rate, betas, weight_decay=0.0, fused=True)
    return {"optimizer": adamw, "muon": muon}


def edm_loss(
    unet: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"] | None,
    sigma_data: float,
    generator: torch.Generator,
    noise_levels: tuple[float, float] = TeacherConfig.noise,
) -> Float[Tensor, ""]:
    """Return EDM's training loss, weighted by 1 / c_out^2 (arXiv:2206.00364, table 1)."""
    p_mean, p_std = noise_levels
    device = images.device
    normal = torch.randn(len(images), generator=generator, device=generator.device)
    sigma = (p_mean + p_std * normal).exp().to(device)
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(device)
    s = sigma.view(-1, 1, 1, 1)

    def predict(x: Tensor, time: Tensor) -> Tensor:
        return unet(x, time, class_labels=labels).sample

    denoised = denoise(EdmPrecond(sigma_data=sigma_data), predict, images + s * noise, sigma)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    return (weight * (denoised - images) ** 2).mean()


def save(folder: Path, unet: UNet2DModel, config: TeacherConfig, sigma_data: float) -> None:
    """Write the teacher in diffusers format."""
    unet.save_pretrained(folder / "unet")
    scheduler = EDMEulerScheduler(
        sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=sigma_data
    )
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "EDMEulerScheduler"],
    }
    write_json(folder / "model_index.json", index)


@torch.no_grad()
def held_out_losses(
    config: TeacherConfig, unet: UNet2DModel, sigma_data: float
) -> dict[str, float]:
    """Return the EDM loss on both parts of the data: a gap between them is memorisation."""
    losses = {}
    for split in ("training", "held_out"):
        data = real_images(config.train_data_dir, split)
        labels = data.labels if conditional(data) else None
        generator = torch.Generator().manual_seed(config.seed)
        levels = config.noise
        parts = [
            edm_loss(unet, data.images, labels, sigma_data, generator, levels) for _ in range(8)
        ]
        losses[f"{split}_loss"] = round(float(torch.stack(parts).mean()), 4)
    return losses


def check(folder: Path) -> None:
    """Check that a teacher is whole: hashes as in its card, loadable, finite samples.

    Raises:
        InputError: If it is not.
    """
    teacher = open_teacher(folder, Sampler(steps=4), "cpu")
    card = check_card(folder)
    noise, labels = draw(0, range(16), teacher.image_shape, teacher.num_classes)
    if not torch.isfinite(teacher(noise, labels)).all():
        raise InputError(
            f"expected finite samples of {folder}, got inf or nan; retrain the teacher"
        )
    print(f"teacher {folder}: {card['parameters']:,} parameters, hashes as in its card, it samples")


if __name__ == "__main__":
    cli.run(main, teachers)
