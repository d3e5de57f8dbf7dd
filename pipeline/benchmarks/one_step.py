"""One training step on random pairs: what the benchmarks of training measure."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.pairs import Pairs
from get.cost import LiveBytes, Macs
from get.models import Student
from get.noise import draw
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import micro_batch_losses


class Counts(NamedTuple):
    """Memory and work of a step, without its optimiser.

    Attributes:
        kept: Bytes kept for the backward pass.
        peak: Most bytes alive at once; weights and gradient buffers exist before and are left out.
        macs: Multiply-accumulates, forward and backward.
    """

    kept: int
    peak: int
    macs: int


def random_pairs(student: Student, count: int) -> Pairs:
    """Return pairs of the shape that a student takes, on its device."""
    noise, labels = draw(0, range(count), student.image_shape, student.num_classes)
    return Pairs(noise, noise.clamp(-1, 1), labels).to(student.device)


def count_step(
    module: nn.Module, config: TrainConfig, batch: Pairs, z0: Tensor | None = None
) -> Counts:
    """Count the losses and the backward pass of one step; no weight changes.

    Args:
        module: The student's objective.
        config: The settings.
        batch: What the step learns from.
        z0: Start of the iteration, for a student that begins at random.
    """
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with LiveBytes() as memory, Macs() as work:
        loss = micro_batch_losses(module, batch, z0, config).total(config.iterate_decay)
        kept = memory.now
        loss.backward()
    module.zero_grad()
    return Counts(kept, memory.peak, work.total)
