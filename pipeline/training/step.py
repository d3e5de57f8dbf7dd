"""THE training step: loss, backward pass, clipping, optimisers, average.

`pipeline/train.py` runs it, the benchmarks time it, `step_cost.py` counts it. What a step draws is
a function of (seed, step), so nothing random has to be saved.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.pairs import Pairs
from get.frechet import FrechetLoss
from get.losses import IterateLoss, Losses
from get.models import Rollout, Student
from get.noise import step_seed
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_objective
from pipeline.training.optimizers import build_optimizers
from pipeline.training.updates import Updates

FRECHET_RATE = 0.05  # of the peak learning rates: averaged moments lag behind fast weights
FEATURES = "features"  # file of a checkpoint: averaged moments of the student's features
WINDOW = 2**31  # stream of (seed, step) that draws the length of rollouts
JACOBIAN = 2**32  # streams of (seed, step) from here on belong to the Jacobian penalty


class TrainingStep:
    """A student in training; a call makes one optimiser step.

    Attributes:
        student: Its raw weights are trained.
        updates: What moves its weights: optimisers, schedules, averaged weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        accelerator: Accelerator | None = None,
        streams: int = 1,
        objective: IterateLoss | None = None,
    ) -> None:
        """Build all that a step changes.

        Args:
            config: The settings.
            student: The model to train, on its device.
            accelerator: Of the processes that share the step; None: this process alone.
            streams: Logical streams of the data order, each with random starts of its own.
            objective: The loss; None builds the one that the settings name, without a Frechet
                distance.
        """
        self.config, self.student, self.accelerator = config, student, accelerator
        self.streams = streams
        self.rank = accelerator.process_index if accelerator else 0
        self.processes = accelerator.num_processes if accelerator else 1
        objective = objective or build_objective(config, student)
        self.frechet = objective.frechet
        others = {} if self.frechet is None else {FEATURES: self.frechet.moments}
        optimizers = build_optimizers(config, student)
        last_phase = (config.frechet_steps, FRECHET_RATE) if config.frechet_weight else None
        self.updates = Updates(
            *(config, student, optimizers),
            others=others,
            last_phase=last_phase,
            keep_gradients=config.cuda_graphs,
        )
        if config.compile:
            # DDP would have graphs cut where a bucket of gradients ends, to send it earlier; but
            # those of weights that every iteration uses are whole at the end alone.
            torch._dynamo.config.optimize_ddp = False
        if config.compile and config.gradient == "unrolled":
            objective.compile_path("reduce-overhead" if config.cuda_graphs else None)
        elif config.compile:  # a solve stops where the samples do
            student.compile_parts()  # in place: weights keep their names
        # Positions in the batch are the same in every step, so a GPU gets them once.
        self._rollouts: dict[tuple[int, int], Rollout | None] = {}
        # DDP where there are several processes; it wraps the module whose forward returns losses.
        self.module = accelerator.prepare(objective) if accelerator else objective

    def __call__(self, batch: Pairs, number: int) -> dict[str, Tensor]:
        """Make optimiser step `number`, counted from 0; return its figures.

        Args:
            batch: This process's part of the global batch.
            number: Decides the random draws and the learning rate.
        """
        micro_steps = self.config.gradient_accumulation_steps
        size = len(batch) // micro_steps
        z0 = self.random_start(number, len(batch))
        penalty_weight, frechet_weight = self.penalty_weight(number), self.frechet_weight(number)
        figures: dict[str, list[Tensor]] = {}
        for i in range(micro_steps):
            rows = slice(i * size, (i + 1) * size)
            if self.config.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # what the last one returned may go
            with self._gradients_synchronised(last=i == micro_steps - 1):
                part = None if z0 is None else z0[rows]
                rollout = self.rollout(number, self.rank * len(batch) + rows.start, size)
                losses = self.losses(
                    batch.take(rows), part, penalty_weight, number, rollout, frechet_weight
                )
                total = losses.total(
                    self.config.iterate_decay, penalty_weight, frechet_weight or 0.0
                )
                (total / micro_steps).backward()
            values = {"loss": losses.iterates[-1], "total": total, "residual": losses.residual}
            values["adjoint_failed"] = losses.adjoint_failed
            values["frechet"] = losses.frechet
            for name, value in values.items():
                if value is not None:
                    value = value.detach()
                    # CUDA graphs use its memory again in the next micro-step.
                    kept = value.clone() if self.config.cuda_graphs else value
                    figures.setdefault(name, []).append(kept)
        if self.frechet is not None and frechet_weight is not None:
            self._update_moments(self.frechet, number)
        means = {name: torch.stack(parts).mean() for name, parts in figures.items()}
        return {**means, "grad_norm": self.updates()}

    def losses(
        self,
        batch: Pairs,
        z0: Tensor | None,
        penalty_weight: float = 0.0,
        number: int = 0,
        rollout: Rollout | None = None,
        frechet_weight: float | None = None,
    ) -> Losses:
        """Return the losses of a micro-batch; see `micro_batch_losses`."""
        seed = step_seed(self.config.seed, number, JACOBIAN + 1 + self.rank)
        return micro_batch_losses(
            self.module, batch, z0, self.config, penalty_weight, seed, rollout, frechet_weight
        )

    def random_start(self, number: int, count: int) -> Tensor | None:
        """Draw the start of the iteration for a student that begins at random.

        One draw a stream, so the number of processes has no influence.
        """
        if self.student.start_shape is None:
            return None
        device, parts, total = self.student.device, [], count * self.processes
        rows = range(self.rank * count, (self.rank + 1) * count)
        for stream in range(self.streams):
            first, last = (total * n // self.streams for n in (stream, stream + 1))
            own = slice(max(rows.start - first, 0), max(min(rows.stop, last) - first, 0))
            if own.start < own.stop:
                seed = step_seed(self.config.seed, number, 1 + stream)
                generator = torch.Generator(device).manual_seed(seed)
                shape = (last - first, *self.student.start_shape)
                parts.append(torch.randn(shape, generator=generator, device=device)[own])
        return torch.cat(parts)

    def rollout(self, number: int, first: int, count: int) -> Rollout | None:
        """Return the rollout of a micro-batch that begins at a position of the global batch."""
        low, high = self.config.window_rollout
        length = low + step_seed(self.config.seed, number, WINDOW) * (high - low + 1) // 2**32
        if (first, count) not in self._rollouts:
            made = build_rollout(self.config, self.student, first, count, length)
            self._rollouts[first, count] = made
        kept = self._rollouts[first, count]
        return None if kept is None else kept._replace(iterations=length)

    def penalty_weight(self, number: int) -> float:
        """Return the weight of the Jacobian penalty in a step; 0 in steps without."""
        c = self.config
        if c.jacobian_weight == 0:
            return 0.0
        chance = step_seed(c.seed, number, JACOBIAN) / 2**32
        return c.jacobian_weight if chance < c.jacobian_probability else 0.0

    def frechet_weight(self, number: int) -> float | None:
        """Return the weight of the Frechet distance in a step; None in steps without.

        Before the steps that use it, moments are collected with weight 0.
        """
        c, left = self.config, self.config.max_train_steps - number
        if not c.frechet_weight or left > c.frechet_steps + c.frechet_collecting_steps:
            return None
        return c.frechet_weight if left <= c.frechet_steps else 0.0

    def _update_moments(self, frechet: FrechetLoss, number: int) -> None:
        """Take this step's images into the averaged moments: a mean, then one that forgets."""
        c, left = self.config, self.config.max_train_steps - number
        steps = c.frechet_steps + c.frechet_collecting_steps - left + 1  # this one included
        accelerator = self.accelerator
        reduce = None if accelerator is None else lambda x: accelerator.reduce(x, "mean")
        frechet.update(1 / min(steps, c.frechet_collecting_steps), reduce)

    def _gradients_synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        """Let processes exchange gradients in the last micro-step of a step only."""
        if last or self.accelerator is None:
            return nullcontext()
        return self.accelerator.no_sync(self.module)


def build_rollout(
    config: TrainConfig, student: Student, first: int, count: int, iterations: int
) -> Rollout | None:
    """Return which samples begin with a rollout; None without, and for what does not iterate.

    They are spread evenly over the global batch, so the number of processes has no influence.

    Args:
        config: The settings.
        student: What is trained.
        first: Position of the first sample in the global batch.
        count: Samples.
        iterations: Length of the rollout.
    """
    share = config.window_share
    if share == 0 or student.iterations is None:
        return None
    rows = [i for i in range(count) if int((first + i + 1) * share) > int((first + i) * share)]
    return Rollout(torch.tensor(rows, device=student.device), iterations)


def micro_batch_losses(
    module: nn.Module,
    batch: Pairs,
    z0: Tensor | None,
    config: TrainConfig,
    penalty_weight: float = 0.0,
    seed: int = 0,
    rollout: Rollout | None = None,
    frechet_weight: float | None = None,
) -> Losses:
    """Return the losses of a micro-batch, evaluated in the precision of the settings.

    Args:
        module: The student's `IterateLoss`, possibly wrapped by DDP.
        batch: Noise, the teacher's images, labels.
        z0: Start of the iteration, for students that begin at random.
        config: The settings.
        penalty_weight: Weight of the Jacobian penalty; 0 does not compute it.
        seed: Of the penalty's random vectors.
        rollout: Samples that begin later in their iteration.
        frechet_weight: Of the Frechet distance; 0 only collects moments, None does nothing.
    """
    draws, generator, device = 0, None, batch.noise.device
    if penalty_weight:
        draws, generator = 1, torch.Generator(device).manual_seed(seed)
    bf16 = config.mixed_precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        return module(
            batch.noise, batch.labels, batch.images, z0, draws, generator, rollout, frechet_weight
        )
