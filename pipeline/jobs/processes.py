"""The processes of a job: which one this is, its device, whether all take part, and how."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
)
from torch import Tensor

from get.errors import InputError

PATIENCE = timedelta(minutes=30)  # with a process that does not answer, before all end
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""Variables of torchrun, Open MPI, MPICH and srun; mpirun may have been started by srun."""


def together() -> list[KwargsHandler]:
    """Return how processes train together: what DDP and the process group are told.

    Gradients lie in the buckets that are summed, without a copy. Students have no buffers, which
    DDP would send around in every step. A static graph would save nothing: every weight has a
    gradient in every step, and the last phase of a training has another graph.
    """
    return [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=PATIENCE),
    ]


def check_processes(accelerator: Accelerator, at_most: int | None = None) -> None:
    """Check the launch: every launched process takes part, at most `at_most` of them.

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
    if at_most and together > at_most:
        raise InputError(f"expected at most {at_most} process, got {together}")


def check_launcher(
    precision: str, micro_steps: int, environment: Mapping[str, str] = os.environ
) -> None:
    """Check that accelerate was not told, by a flag of `accelerate launch`, what is ours to say.

    Precision, micro-steps and compiling are settings of the script; accelerate's would have no
    effect, or compile once more. `accelerate launch` without a flag says "no". Weights are not
    sharded, and on CPUs accelerate itself would not say so.

    Raises:
        InputError: If it was.
    """
    for strategy in SHARDED:
        if environment.get(f"ACCELERATE_USE_{strategy}", "false").lower() in ("true", "1"):
            raise InputError(
                f"expected whole weights on every process, as DDP keeps them, got {strategy}; "
                "launch without it: pipeline.plan says what a process takes, and "
                "--gradient_checkpointing or --gradient phantom take less"
            )
    if (compiler := environment.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise InputError(
            f"expected no dynamo backend from accelerate, got {compiler!a}; give --compile after "
            "the name of the script"
        )
    for variable, flag, ours, default in (
        ("ACCELERATE_MIXED_PRECISION", "mixed_precision", precision, "no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", micro_steps, "1"),
    ):
        theirs = environment.get(variable, default)
        if theirs not in (default, str(ours)):
            raise InputError(
                f"expected {flag} {ours} from accelerate too, got {theirs!a} ({variable}); "
                f"give --{flag} after the name of the script, where alone it has an effect"
            )


def all_equal(facts: Sequence[int | Tensor], accelerator: Accelerator) -> bool:
    """Say whether these whole numbers are the same in all processes, and wait for all of them."""
    row = torch.stack([torch.as_tensor(x, device=accelerator.device) for x in facts])
    rows = accelerator.gather(row[None])
    return bool((rows == rows[0]).all())


class Highest:
    """The highest of a number of all processes, which is asked for now and read later.

    A GPU answers when it has done all that it was given before: whoever reads at once waits for
    that. Every process must ask at the same places.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing asked yet: the answer is 0.

        Args:
            device: That of the process; its group answers from there.
        """
        self.device, self._answer = device, torch.zeros(1, dtype=torch.int64)
        self._there: torch.cuda.Event | None = None

    def ask(self, number: int) -> None:
        """Give this process's number; wait for nothing but, on CPUs, for the others."""
        highest = torch.full((1,), number, device=self.device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        self._answer = highest.to("cpu", non_blocking=True)  # to pinned memory
        if torch.cuda.is_initialized():
            self._there = torch.cuda.Event()
            self._there.record()

    def answer(self) -> int:
        """Return the highest number that was given when all were last asked."""
        if self._there is not None:
            self._there.synchronize()
        return int(self._answer)


def fingerprint(data: object) -> int:
    """Return a number of 60 bits that other data, as JSON, hardly share."""
    text = json.dumps(data, default=str, sort_keys=True)
    return int(sha256(text.encode()).hexdigest()[:15], 16)


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process among those of its job on its machine."""
    numbers = (environment.get(name, "") for name in LOCAL_RANKS)
    return next((int(number) for number in numbers if re.fullmatch("[0-9]{1,9}", number)), 0)


def local_main() -> bool:
    """Say whether this is the process that prints on its machine."""
    return local_rank() == 0


def local_device() -> torch.device:
    """Return this process's GPU, or the CPU, for scripts without collectives.

    A scheduler shows a process all GPUs of the job on its machine, or its own alone.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())
