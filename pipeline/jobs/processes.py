"""The processes of a job: which one this is, its device, and whether all of them take part."""

import os

import torch
from accelerate import Accelerator, DistributedType

from get.errors import InputError

SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


def check_processes(accelerator: Accelerator, at_most: int | None = None) -> None:
    """Check the launch: every launched process takes part, at most `at_most` of them, unsharded.

    Raises:
        InputError: If not. `accelerate launch --cpu --num_processes 2` starts one process, and
            torchrun without ACCELERATE_USE_CPU=1 starts processes that do not know each other.
    """
    launched, together = int(os.environ.get("WORLD_SIZE", "1")), accelerator.num_processes
    if launched != together:
        raise InputError(
            f"expected {launched} processes to work together, got {together}; on CPUs launch with "
            "ACCELERATE_USE_CPU=1 torchrun --standalone --nproc_per_node N -m pipeline.NAME"
        )
    if (strategy := accelerator.distributed_type) in SHARDED:
        raise InputError(
            f"expected whole weights on every process, as DDP keeps them, got {strategy.value}; "
            "launch without it: saving and averaging sharded weights is not built"
        )
    if at_most and together > at_most:
        raise InputError(f"expected at most {at_most} process, got {together}")


def local_main() -> bool:
    """Say whether this is the process that prints on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def local_device() -> torch.device:
    """Return this process's GPU, or the CPU, for scripts without collectives."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
