"""Work and memory of a training step, played through on fake tensors: shapes without numbers.

So the largest model costs seconds and no memory. Counts are those of the CPU's kernels in the
precision asked for; a GPU's attention keeps a little less. Next: dry_run.py tells them.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from data.manifest import Manifest
from get.cost import LiveBytes, Macs, count_macs
from get.equilibrium import Implicit
from get.losses import IterateLoss
from get.models import GET, ViT
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_student, training_module
from pipeline.training.optimizers import build_optimizers

PERCEPTUAL = ("lpips", "dists")


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one process takes for a training step; all but the work in bytes.

    Attributes:
        macs: Multiply-accumulates of a micro-step, forward and backward.
        weights: Of the student, frozen ones too.
        gradients: Of the weights that are trained.
        moments: What the optimisers keep; AdamW's step numbers are left out.
        batch: Noise, images, labels and starts of the iteration, of all micro-steps.
        kept: For the backward pass, where the forward pass of a micro-step ends.
        peak: The most alive at once in the step, gradients included as they come; weights, their
            average, moments and batch are there before and left out.
    """

    macs: int
    weights: int
    gradients: int
    moments: int
    batch: int
    kept: int
    peak: int

    @property
    def checkpoint(self) -> int:
        """The result, the weights, their average and the moments."""
        return 3 * self.weights + self.moments

    def total(self, processes: int) -> int:
        """Return the memory of one of so many processes; DDP keeps gradients a second time."""
        ddp = self.gradients if processes > 1 else 0
        return 2 * self.weights + self.moments + self.batch + self.peak + ddp


def step_cost(config: TrainConfig, manifest: Manifest, processes: int = 1) -> StepCost:
    """Count what a step takes whose solvers spend all the evaluations they may.

    Of perceptual losses nothing is counted: their networks would have to be downloaded.
    """
    micro_steps = config.gradient_accumulation_steps
    samples = config.global_batch_size // (processes * micro_steps)
    draws = config.jacobian_draws if config.jacobian_weight else 0
    if config.loss in PERCEPTUAL:
        config = replace(config, loss="l1")
    with FakeTensorMode():
        student = build_student(config, manifest)
        module = never_stopping(training_module(config, student))
        noise, target = (torch.empty(samples, *manifest.image_shape) for _ in range(2))
        labels = torch.zeros(samples, dtype=torch.int64) if manifest.num_classes else None
        z0 = None
        if isinstance(student, GET) and student.z0 == "normal":
            z0 = torch.empty(samples, student.tokens, student.width)
        inputs = [x for x in (noise, target, labels, z0) if x is not None]
        kept, bf16 = 0, config.mixed_precision == "bf16"
        with LiveBytes() as memory, Macs() as work:
            steps = min(micro_steps, 2)  # from the second on gradients are there before
            for _ in range(steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    losses = module(noise, labels, target, z0, draws)
                loss = losses.total(config.iterate_decay, config.jacobian_weight)
                kept = kept or memory.now
                loss.backward()
    return StepCost(
        macs=work.total // steps,
        weights=nbytes(student),
        gradients=nbytes(student, trained=True),
        moments=sum(map(moment_bytes, build_optimizers(config, student).values())),
        batch=micro_steps * sum(x.nbytes for x in inputs),
        kept=kept,
        peak=memory.peak,
    )


def image_macs(student: GET | ViT) -> int:
    """Return the multiply-accumulates of one image, of a copy without numbers."""
    size, start = student.image_size, {}
    with torch.device("meta"):
        copy = type(student).from_config(student.config)
        assert isinstance(copy, GET | ViT)
        noise = torch.zeros(1, student.channels, size, size)
        labels = torch.zeros(1, dtype=torch.int64) if student.num_classes else None
        if isinstance(copy, GET):
            start["z0"] = torch.zeros(1, copy.tokens, copy.width)
        return count_macs(lambda: copy(noise, labels, **start))


def never_stopping(module: IterateLoss) -> IterateLoss:
    """Let solvers spend all their evaluations: without numbers nobody knows when to stop."""
    if (equilibrium := module.equilibrium) is not None:
        gradient = equilibrium.gradient
        if isinstance(gradient, Implicit):
            gradient = replace(gradient, tol=0.0)
        module.equilibrium = replace(equilibrium, gradient=gradient, tol=0.0)
    return module


def nbytes(module: nn.Module, trained: bool = False) -> int:
    """Return the bytes of a model's parameters, or of those that are trained."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained)


def moment_bytes(optimizer: Optimizer) -> int:
    """Return the bytes an optimiser keeps: two moments of a weight for AdamW, one for Muon."""
    each = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    return each * sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
