"""What moves weights by their gradients: the same for teachers, classifiers and students."""

from collections.abc import Mapping
from typing import Generic

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from get.ema import EMA, Model, PowerEMA
from pipeline.jobs.averages import average_name
from pipeline.jobs.host_copy import TrainState
from pipeline.recipes.settings_make import TrainingConfig


class Updates(Generic[Model]):
    """Clipping, optimisers with their schedules, and the averaged weights.

    Attributes:
        optimizers: By the names of their files in a checkpoint.
        average: The model with averaged weights, which is the result of a training.
        state: All that an update changes, for checkpoints.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: Model,
        optimizers: Mapping[str, Optimizer] | None = None,
        name: str = "model",
        others: Mapping[str, torch.nn.Module] | None = None,
        last_phase: tuple[int, float] | None = None,
        keep_gradients: bool = False,
    ) -> None:
        """Copy the weights to be averaged and set up the schedules.

        Args:
            config: The settings.
            model: What is trained.
            optimizers: By the names of their files; None is AdamW for all weights.
            name: Of the file with the raw weights.
            others: What else a checkpoint must hold, by the names of its files.
            last_phase: Steps after the end of the schedule, and the share of the peak learning
                rates with which they begin; they fall to 0 linearly. None ends with the schedule.
            keep_gradients: Whether gradients stay where they are in memory and become 0, as CUDA
                graphs need it, instead of being freed.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if optimizers is None:
            adamw = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=0.0)
            optimizers = {"optimizer": adamw}
        self.model, self.optimizers, self.keep_gradients = model, optimizers, keep_gradients
        if keep_gradients:
            for p in self.parameters:
                p.grad = torch.zeros_like(p)
        self.max_grad_norm = config.max_grad_norm
        self.schedulers = tuple(_scheduler(config, x, last_phase) for x in optimizers.values())
        self.ema = EMA(model, config.ema_decay, config.ema_ramp)
        self.average = self.ema.model
        self.power = {x: PowerEMA(model, x) for x in config.ema_sigma_rel}
        averages = {average_name(x): power.model for x, power in self.power.items()}
        modules = {name: model, "ema": self.average, **averages, **(others or {})}
        self.state = TrainState(modules, optimizers, self.schedulers, config.ema_sigma_rel)

    def __call__(self) -> Tensor:
        """Move the weights by their gradients, forget these; return their norm before clipping."""
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.max_grad_norm is not None:
            clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        for optimizer, scheduler in zip(self.optimizers.values(), self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=not self.keep_gradients)
        made = self.schedulers[0].last_epoch  # steps
        self.ema.update(self.model, made)
        for power in self.power.values():
            power.update(self.model, made)
        return norm


def _scheduler(
    config: TrainingConfig, optimizer: Optimizer, last_phase: tuple[int, float] | None
) -> LambdaLR:
    """Return the schedule that the settings name, and after it the last phase, if there is one."""
    steps, share = last_phase or (0, 0.0)
    first = config.max_train_steps - steps
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=first,
    )
    if last_phase is None:
        return scheduler
    (schedule,) = {*scheduler.lr_lambdas}

    def rate(step: int) -> float:
        return schedule(step) if step < first else share * (1 - (step - first) / steps)

    scheduler.lr_lambdas = [rate] * len(scheduler.lr_lambdas)
    return scheduler
