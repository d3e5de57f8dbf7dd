"""What a model costs: parameters, multiply-accumulates, images per second."""

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones (GET's position table) included."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def count_macs(call: Callable[[], object]) -> int:
    """Return the multiply-accumulates of everything `call` does (matmul, convolution, attention).

    Counted by torch's `FlopCounterMode`, which counts two operations a multiply-accumulate.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@torch.no_grad()
def images_per_second(call: Callable[[], object], images: int, seconds: float = 2.0) -> float:
    """Return the best rate seen over repeated calls.

    The best, not the mean: other work on the machine can only slow a call down.

    Args:
        call: Makes `images` images and waits for them.
        images: Images a call.
        seconds: How long to repeat, at least twice after one call for warming up.
    """
    call()
    best, spent, calls = float("inf"), 0.0, 0
    while spent < seconds or calls < 2:
        began = time.perf_counter()
        call()
        took = time.perf_counter() - began
        best, spent, calls = min(best, took), spent + took, calls + 1
    return images / best
