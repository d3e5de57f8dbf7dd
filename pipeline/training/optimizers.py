"""The optimisers of a student: AdamW for all, or Muon for the matrices of its blocks."""

import torch
from torch import nn
from torch.optim import Optimizer

from get.muon import Muon
from pipeline.recipes.settings_train import TrainConfig


def build_optimizers(config: TrainConfig, student: nn.Module) -> dict[str, Optimizer]:
    """Return the optimisers by the names of their files in a checkpoint; see `TrainState`.

    Muon takes the blocks' and the injection's weights. Embedding, output, biases and whatever else
    is no matrix between features stay with AdamW.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    optimizers: dict[str, Optimizer] = {}
    if config.optimizer == "muon":
        inner = [
            n for n, p in trained.items() if p.ndim == 2 and ("blocks" in n or "injection" in n)
        ]
        groups: dict[int, list[nn.Parameter]] = {}
        for name in inner:
            weight = trained.pop(name)
            stacked = len(weight) // weight.shape[1] if _stacks(name) else 1
            groups.setdefault(stacked, []).append(weight)
        optimizers["muon"] = Muon(
            [{"params": params, "stacked": stacked} for stacked, params in groups.items()],
            config.muon_learning_rate,
        )
    betas = (0.9, config.adam_beta2)
    adamw = torch.optim.AdamW(
        trained.values(), config.learning_rate, betas, weight_decay=0.0, fused=True
    )
    return {"optimizer": adamw, **optimizers}


def _stacks(name: str) -> bool:
    """Say whether a weight is several square ones: queries, keys and values, once or per block."""
    return "qkv" in name or "injection" in name
