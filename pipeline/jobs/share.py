"""Which part of the work this job does: under a shell loop, Slurm, Kubernetes or torchrun."""

from collections.abc import Mapping

from get.errors import InputError


def share(
    task_index: int | None, num_tasks: int | None, environment: Mapping[str, str]
) -> tuple[int, int]:
    """Return (index, count): this job does the parts index, index + count, ... of the work.

    The flags decide if they are given; otherwise the index in a Slurm array; otherwise the rank
    under srun or under torchrun and accelerate, whichever has more processes (torchrun inside an
    srun step has both). With `num_tasks` alone the index comes from the environment, which is how
    an indexed job of Kubernetes is used.

    Raises:
        InputError: If index or count is missing, or the index is out of range.
    """
    number = {name: int(value) for name, value in environment.items() if value.isdecimal()}
    if num_tasks is not None:
        indices = (number[name] for name in INDICES if name in number)
        index, count = next(indices, None) if task_index is None else task_index, num_tasks
    elif task_index is not None:
        raise InputError(f"expected --num_tasks with --task_index {task_index}, got none")
    elif "SLURM_ARRAY_TASK_ID" in number:
        first = number.get("SLURM_ARRAY_TASK_MIN", 0)
        index = (number["SLURM_ARRAY_TASK_ID"] - first) // number.get("SLURM_ARRAY_TASK_STEP", 1)
        count = number.get("SLURM_ARRAY_TASK_COUNT", 0)
    else:
        ranks = [(number.get(rank, 0), number.get(world, 1)) for rank, world in RANKS]
        index, count = max(ranks, key=lambda pair: pair[1])
    if index is None or not 0 <= index < count:
        raise InputError(
            f"expected a task index from 0 to {count - 1}, got {index}; give --task_index and "
            "--num_tasks, the same number for every job of this data set"
        )
    return index, count


INDICES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "SLURM_PROCID", "RANK")
RANKS = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))
