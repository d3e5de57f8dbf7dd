"""What an image costs: a teacher, GETs and ViTs of published sizes, measured in turns.

The teacher is the DDPM++ network of NVlabs EDM for CIFAR-10, evaluated 35 times an image (Heun's
method, 18 steps). Weights are random: cost does not depend on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from data.teachers.edm.networks import SongConfig, SongUNet
from get.cost import count_macs, count_parameters, in_turns
from get.losses import IterateLoss
from get.models import Student, build
from pipeline import cli
from pipeline.benchmarks.one_step import count_step, random_pairs
from pipeline.benchmarks.results import BenchmarkConfig, save
from pipeline.jobs.processes import local_device
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes.settings_train import TrainConfig

TEACHER = "EDM DDPM++"
EVALUATIONS = 35  # of the teacher's network for one image
EDM: dict[str, Any] = {
    "img_resolution": 32, "img_channels": 3, "channel_mult": (2, 2, 2), "augment_dim": 9
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CostsConfig(BenchmarkConfig):
    """Measure what an image costs with a teacher, GETs and ViTs.

    Attributes:
        sizes: Published sizes of students.
        batch_sizes: Numbers of images at once among which the best rate is sought.
        repeats: Turns; the median counts.
        training_batch: Images of the training step whose memory is counted.
        teacher_channels: Width of the teacher's network, 128 in EDM's.
    """

    sizes: tuple[str, ...] = ("GET-T/2", "GET-S/2", "GET-B/2", "ViT-S/2", "ViT-B/2", "ViT-L/2")
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    repeats: int = 3
    training_batch: int = 2
    teacher_channels: int = 128


def main(config: CostsConfig) -> None:
    """Measure all models; write a JSON file and print the table."""
    device = local_device()
    students = {size: build(size, image_size=32) for size in config.sizes}
    models: dict[str, nn.Module] = {TEACHER: edm_network(config.teacher_channels), **students}
    for model in models.values():
        nn.Module.to(model, device).eval()
    calls = {name: call_of(model, device) for name, model in models.items()}
    found = dict[str, dict[str, Any]]()
    with cli.progress_bar(len(models) * (len(config.batch_sizes) + 1), "costs", "turn") as bar:
        for name, model in models.items():
            found[name] = {
                "parameters": count_parameters(model),
                "macs": count_macs(lambda c=calls[name]: c(1)),
                "evaluations": EVALUATIONS if name == TEACHER else 1,
                "seconds": {},
            }
            if name in students:
                found[name]["training_bytes"] = training_bytes(students[name], config)
            found[name]["weight_bytes"] = 4 * found[name]["parameters"]
            bar.update()
        with torch.no_grad():
            for batch in config.batch_sizes:
                turns = {n: lambda c=c, b=batch: c(b) for n, c in calls.items()}
                for name, seconds in in_turns(turns, config.repeats).items():
                    found[name]["seconds"][batch] = median(seconds.wall)
                bar.update(len(models))
    for row in found.values():
        evaluations, seconds = row["evaluations"], row["seconds"]
        row["macs"] *= evaluations
        row["latency"] = seconds[config.batch_sizes[0]] * evaluations
        row["images_per_second"] = max(b / s for b, s in seconds.items()) / evaluations
    print(markdown(save(config, "costs", {"models": found, "batch_sizes": config.batch_sizes,
                                          "training_batch": config.training_batch})))  # fmt: skip


def edm_network(channels: int) -> SongUNet:
    """Return the unconditional DDPM++ network of EDM's CIFAR-10 teachers with random weights."""
    network = SongUNet(SongConfig(model_channels=channels, **EDM))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    return network


def call_of(model: nn.Module, device: torch.device) -> Callable[[int], object]:
    """Return a function that evaluates a network once for so many images."""
    largest = torch.zeros(1, 3, 32, 32, device=device)

    def call(batch: int) -> object:
        noise = largest.expand(batch, -1, -1, -1)
        if isinstance(model, Student):
            return model.images(noise)
        return model(noise, torch.zeros(batch, device=device), None)

    return call


def training_bytes(student: Student, config: CostsConfig) -> int:
    """Return the most bytes alive in a step, beside weights, gradients and moments, per image."""
    objective = IterateLoss(student)
    settings = TrainConfig(output_dir=config.output_dir, pairs="")
    batch = random_pairs(student, config.training_batch)
    return count_step(objective, settings, batch).peak // config.training_batch


def markdown(result: dict[str, Any]) -> str:
    """Return the table; times are shown as ratios, which other work on the machine changes less."""
    rows = result["models"]
    teacher = rows[TEACHER]
    header = [
        "model", "parameters", "network evaluations", "MACs per image",
        "one image: faster than the teacher", "many images: faster", "training memory per image",
    ]  # fmt: skip
    cells = [
        [
            name,
            f"{row['parameters'] / 1e6:.1f} M",
            str(row["evaluations"]),
            f"{row['macs'] / 1e9:.1f} G",
            f"{teacher['latency'] / row['latency']:.3g}x",
            f"{row['images_per_second'] / teacher['images_per_second']:.3g}x",
            f"{row['training_bytes'] / 2**20:.0f} MiB" if "training_bytes" in row else "-",
        ]
        for name, row in rows.items()
    ]
    return markdown_table([header, *cells])
