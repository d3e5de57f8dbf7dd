"""Work and memory of a training step, run on fake tensors: shapes without numbers.

So the largest model costs seconds and no memory. Counts are those of the CPU's kernels in the
precision asked for; a GPU's attention keeps a little less. `pipeline/plan.py` reports them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from data.manifest import Manifest
from data.pairs import Pairs
from get.cost import LiveBytes, Macs, count_macs, count_parameters
from get.equilibrium import Implicit
from get.losses import NETWORKS, IterateLoss
from get.models import Student
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_objective, build_student
from pipeline.training.optimizers import build_optimizers
from pipeline.training.step import build_rollout, micro_batch_losses


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one process takes for a training step; all but the work in bytes.

    Attributes:
        macs: Multiply-accumulates of a micro-step, forward and backward.
        weights: Of the student, frozen ones too.
        gradients: Of the weights that are trained.
        moments: What the optimisers keep; AdamW's step numbers are left out.
        averages: Power-function averages of the weights, beside the average that is the result.
        batch: Noise, images, labels and starts of the iteration, of all micro-steps.
        kept: For the backward pass, where the forward pass of a micro-step ends.
        peak: The most alive at once in the step, gradients included as they come, and in the
            optimisers' update; weights, their averages, moments and batch are there before and
            left out.
    """

    macs: int
    weights: int
    gradients: int
    moments: int
    averages: int
    batch: int
    kept: int
    peak: int

    @property
    def checkpoint(self) -> int:
        """The result, and the state that is copied."""
        return self.weights + self.copy

    @property
    def copy(self) -> int:
        """The weights, their averages and the moments, copied to be written beside the steps."""
        return 2 * self.weights + self.averages + self.moments

    def total(self, processes: int) -> int:
        """Return the memory of one of so many processes; DDP keeps gradients a second time."""
        ddp = self.gradients if processes > 1 else 0
        return self.copy + self.batch + self.peak + ddp


def step_cost(config: TrainConfig, manifest: Manifest, processes: int = 1) -> StepCost:
    """Count what a step takes if its solvers spend all the evaluations they may.

    Perceptual losses count nothing: their networks would have to be downloaded.
    """
    micro_steps = config.gradient_accumulation_steps
    samples = config.global_batch_size // (processes * micro_steps)
    if config.loss in NETWORKS:
        config = replace(config, loss="l1")
    with FakeTensorMode():
        student = build_student(config, manifest)
        objective = _never_stopping(build_objective(config, student))
        noise, images = (torch.empty(samples, *manifest.image_shape) for _ in range(2))
        labels = torch.zeros(samples, dtype=torch.int64) if manifest.num_classes else None
        z0 = torch.empty(samples, *start) if (start := student.start_shape) else None
        rollout = build_rollout(config, student, 0, samples, config.window_rollout[1])
        inputs = [x for x in (noise, images, labels, z0) if x is not None]
        optimizers = build_optimizers(config, student)
        _make_moments(student, optimizers)
        kept = 0
        measured = min(micro_steps, 2)  # from the second on gradients are there before
        with LiveBytes() as memory:
            with Macs() as work:
                for _ in range(measured):
                    batch = Pairs(noise, images, labels)
                    losses = micro_batch_losses(
                        objective, batch, z0, config, config.jacobian_weight, rollout=rollout
                    )
                    loss = losses.total(config.iterate_decay, config.jacobian_weight)
                    kept = kept or memory.now
                    loss.backward()
                    del losses, loss
            for optimizer in optimizers.values():
                optimizer.step()
    return StepCost(
        macs=work.total // measured,
        weights=nbytes(student),
        gradients=nbytes(student, trained=True),
        moments=sum(map(moment_bytes, optimizers.values())),
        averages=len(config.ema_sigma_rel) * nbytes(student),
        batch=micro_steps * sum(x.nbytes for x in inputs),
        kept=kept,
        peak=memory.peak,
    )


def image_macs(student: Student, iterations: int | None = None) -> int:
    """Return the multiply-accumulates of one image, of a copy without numbers.

    Args:
        student: The model.
        iterations: Number of iterations; None takes the model's own.
    """
    with torch.device("meta"):
        copy = type(student).from_config(student.config)
        assert isinstance(copy, Student)
        noise = torch.zeros(1, *student.image_shape)
        labels = torch.zeros(1, dtype=torch.int64) if student.num_classes else None
        z0 = torch.zeros(1, *start) if (start := copy.start_shape) else None
        return count_macs(lambda: copy.images(noise, labels, z0=z0, iterations=iterations))


def summary(config: TrainConfig, student: Student, pairs: int, place: str, processes: int) -> str:
    """Return model, training pairs and batch in three lines."""
    samples = config.max_train_steps * config.global_batch_size
    shape = "x".join(map(str, student.image_shape))
    return f"""\
  {type(student).__name__}: {count_parameters(student):,} parameters, \
{image_macs(student):,} MACs per image
  pairs: {pairs:,} of {shape} in {place}
  global batch {config.global_batch_size} = {processes} processes x \
{config.gradient_accumulation_steps} micro-steps; {config.max_train_steps} steps, \
{samples / max(pairs, 1):.1f} epochs"""


def _make_moments(student: Student, optimizers: Mapping[str, Optimizer]) -> None:
    """Let optimisers make what they keep, which is there before the steps that are counted."""
    for p in student.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()


def _never_stopping(objective: IterateLoss) -> IterateLoss:
    """Let solvers spend all their evaluations: without numbers nobody knows when to stop."""
    if (equilibrium := objective.equilibrium) is not None:
        gradient = equilibrium.gradient
        if isinstance(gradient, Implicit):
            gradient = replace(gradient, tol=0.0)
        objective.equilibrium = replace(equilibrium, gradient=gradient, tol=0.0)
    return objective


def nbytes(module: nn.Module, trained: bool = False) -> int:
    """Return the bytes of a model's parameters, or of those that are trained."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained)


def moment_bytes(optimizer: Optimizer) -> int:
    """Return the bytes an optimiser keeps: two moments of a weight for AdamW, one for Muon."""
    each = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    return each * sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
