"""The peak rates of known GPUs, and how long a training step would take at them."""

import re
from dataclasses import replace

import torch

from data.manifest import Manifest
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step_cost import step_cost

PEAKS = {  # part of the GPU's name: dense bf16 and TF32, in 1e12 operations a second (datasheets)
    "B200": (2250.0, 1125.0),
    "H200": (989.4, 494.7),
    "H100 PCIe": (756.5, 378.0),
    "H100 NVL": (835.5, 417.5),
    "H100": (989.4, 494.7),
    "A100": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "A10": (125.0, 62.5),
}


def peak(name: str, precision: str) -> float | None:
    """Return the multiply-accumulates a second at the peak of a GPU; None if it is not known.

    Args:
        name: As torch names it.
        precision: "bf16", or "no" for TF32.
    """
    for part, (bf16, tf32) in PEAKS.items():
        if re.search(rf"\b{part}(?!\d)", name):
            return (bf16 if precision == "bf16" else tf32) * 1e12 / 2
    return None


def ideal_seconds(
    config: TrainConfig, manifest: Manifest, processes: int, device: torch.device
) -> float | None:
    """Return how long a step's multiply-accumulates would take at the peak of this device.

    What is computed again to save memory does not count as work.

    Returns:
        Seconds of one process. None on a CPU, an unknown GPU, and where the number of evaluations
        is not known before.
    """
    if device.type != "cuda" or config.gradient != "unrolled":
        return None
    rate = peak(torch.cuda.get_device_name(device), config.mixed_precision)
    return None if rate is None else step_macs(config, manifest, processes) / rate


def step_macs(config: TrainConfig, manifest: Manifest, processes: int) -> float:
    """Return the multiply-accumulates of one process in a step, on average over the rollouts."""
    plain = replace(config, gradient_checkpointing=False)
    lengths = config.window_rollout if config.window_share else config.window_rollout[:1]
    macs = [
        step_cost(replace(plain, window_rollout=(n, n)), manifest, processes).macs for n in lengths
    ]
    return sum(macs) / len(macs) * config.gradient_accumulation_steps
