"""What moves weights by their gradients: the same for teachers, classifiers and students."""

from collections.abc import Mapping
from typing import Generic

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from get.ema import EMA, Model
from pipeline.jobs.checkpoints import TrainState
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
    ) -> None:
        """Copy the weights to be averaged and set up the schedules.

        Args:
            config: The settings.
            model: What is trained.
            optimizers: By the names of their files; None is AdamW for all weights.
            name: Of the file with the raw weights.
            others: What else a checkpoint must hold, by the names of its files.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if optimizers is None:
            adamw = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=0.0)
            optimizers = {"optimizer": adamw}
        self.model, self.optimizers = model, optimizers
        self.max_grad_norm = config.max_grad_norm or torch.inf
        self.schedulers = tuple(
            get_scheduler(
                config.lr_scheduler,
                optimizer,
                num_warmup_steps=config.lr_warmup_steps,
                num_training_steps=config.max_train_steps,
            )
            for optimizer in optimizers.values()
        )
        self.ema = EMA(model, config.ema_decay)
        self.average = self.ema.model
        modules = {name: model, "ema": self.average, **(others or {})}
        self.state = TrainState(modules, optimizers, self.schedulers)

    def __call__(self) -> Tensor:
        """Move the weights by their gradients, forget these; return their norm before clipping."""
        norm = clip_grad_norm_(self.parameters, self.max_grad_norm)
        for optimizer, scheduler in zip(self.optimizers.values(), self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        self.ema.update(self.model)
        return norm
