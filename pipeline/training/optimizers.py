"""The optimisers of a model with blocks: AdamW for all, or Muon for the blocks' matrices."""

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from get.muon import Muon
from pipeline.recipes.settings_classify import ImageClassifierConfig
from pipeline.recipes.settings_train import TrainConfig


def build_optimizers(
    config: TrainConfig | ImageClassifierConfig, student: nn.Module
) -> dict[str, Optimizer]:
    """Return the optimisers by the names of their files in a checkpoint; see `TrainState`.

    Muon takes the weight matrices in modules called "...blocks" and "injection". AdamW takes the
    rest: embedding, output, biases.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    optimizers: dict[str, Optimizer] = {}
    if config.optimizer == "muon":
        groups: dict[int, list[nn.Parameter]] = {}  # by the number of matrices in one weight
        for name, weight in list(trained.items()):
            if weight.ndim == 2 and ("blocks" in name or "injection" in name):
                stacked = len(weight) // weight.shape[1] if _is_stack(name) else 1
                groups.setdefault(stacked, []).append(trained.pop(name))
        if groups:
            of_students = isinstance(config, TrainConfig)
            optimizers["muon"] = Muon(
                [{"params": params, "stacked": stacked} for stacked, params in groups.items()],
                config.muon_learning_rate,
                weight_decay=config.muon_weight_decay if of_students else 0.0,
                scaling=config.muon_scaling if of_students else "spectral",
                processes=dist.group.WORLD if dist.is_initialized() else None,
            )
    betas = (0.9, config.adam_beta2)
    adamw = torch.optim.AdamW(
        trained.values(), config.learning_rate, betas, weight_decay=0.0, fused=True
    )
    return {"optimizer": adamw, **optimizers}


def _is_stack(name: str) -> bool:
    """Say whether a weight holds several square ones: queries, keys and values of a block."""
    return "qkv" in name or "injection" in name
