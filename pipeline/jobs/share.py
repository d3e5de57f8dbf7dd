"""Which part of the work this job does: under a shell loop, Slurm, Kubernetes, mpirun, torchrun."""

import re
from collections.abc import Mapping

from get.errors import InputError


def share(
    task_index: int | None, num_tasks: int | None, environment: Mapping[str, str]
) -> tuple[int, int]:
    """Return (index, count): this job does the parts index, index + count, ... of the work.

    Both flags together decide. Otherwise the environment does: the element of an array of jobs,
    times the rank among the processes of that element. `num_tasks` alone is the count for
    schedulers that do not say it.

    Raises:
        InputError: If index or count is missing or contradictory, or the index is out of range.
    """
    if task_index is not None:
        if num_tasks is None:
            raise InputError(f"expected --num_tasks with --task_index {task_index}, got none")
        index, count = task_index, num_tasks
    else:
        numbers = {k: int(v) for k, v in environment.items() if re.fullmatch(r"[0-9]{1,18}", v)}
        if not numbers.get("LSB_JOBINDEX"):  # 0 in a job of LSF that is no array
            numbers.pop("LSB_JOBINDEX", None)
        index, count = _from_scheduler(numbers, num_tasks)
    if index is None or not 0 <= index < count:
        raise InputError(
            f"expected a task index from 0 to {count - 1}, got {index}; give --task_index and "
            "--num_tasks, the same number for every job of this data set"
        )
    return index, count


def _from_scheduler(numbers: Mapping[str, int], num_tasks: int | None) -> tuple[int | None, int]:
    """Return index and count; the index is None if nothing in the environment says it."""
    rank, processes = _rank(numbers)
    element = next((array for array in ARRAYS if array[0] in numbers), None)
    if element is None:
        if num_tasks is None:
            return rank, processes
        return (rank if any(name in numbers for name, _ in RANKS) else None), num_tasks

    name, first_name, step_name, last_name, count_name = element
    first, step = numbers.get(first_name, 0), numbers.get(step_name, 1) or 1
    at = (numbers[name] - first) // step
    elements = numbers.get(count_name)
    if elements is None and last_name in numbers:
        elements = (numbers[last_name] - first) // step + 1
    if num_tasks is None:
        if elements is None and numbers.get("GROUP_WORLD_SIZE", 1) > 1:
            return rank, processes  # torchrun joins the elements
        if elements is None:
            raise InputError(
                f"expected --num_tasks with {name} {numbers[name]}, got none; give the number of "
                "jobs, which this scheduler does not say"
            )
        return at * processes + rank, elements * processes
    if elements is None or elements * processes == num_tasks:
        return at * processes + rank, num_tasks
    if first:
        raise InputError(
            f"expected --num_tasks {elements * processes} in an array of {elements} elements x "
            f"{processes} processes that begins at {first}, got {num_tasks}; give --task_index"
        )
    return numbers[name] * processes + rank, num_tasks  # some elements of a larger array


def _rank(numbers: Mapping[str, int]) -> tuple[int, int]:
    """Return the rank of this process and the number of processes.

    Of several launchers, one inside the other, the one with the most processes has started all of
    them; but torchrun on one node only multiplies the tasks of srun.
    """
    ranks = [
        (numbers[rank], numbers[size]) for rank, size in RANKS if {rank, size} <= numbers.keys()
    ]
    rank, processes = max(ranks, key=lambda pair: pair[1], default=(0, 1))
    task, tasks = (numbers.get(name, at) for name, at in zip(RANKS[0], (0, 1), strict=True))
    if numbers.get("GROUP_WORLD_SIZE") == 1 and "SLURM_STEP_NUM_TASKS" in numbers:
        local = numbers.get("WORLD_SIZE", 1)
        return task * local + numbers.get("RANK", 0), tasks * local
    return rank, processes


ARRAYS = (
    tuple(f"SLURM_ARRAY_TASK_{what}" for what in ("ID", "MIN", "STEP", "MAX", "COUNT")),
    tuple(f"SGE_TASK_{what}" for what in ("ID", "FIRST", "STEPSIZE", "LAST", "COUNT")),
    # These say no count.
    *((n, "", "", "", "") for n in ("JOB_COMPLETION_INDEX", "PBS_ARRAY_INDEX", "LSB_JOBINDEX")),
)
"""Variables of arrays of jobs: this element, the first, the distance, the last, the count."""
RANKS = (
    # Not SLURM_NTASKS: in a script of sbatch or a shell of salloc it counts processes that srun
    # would start.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""Variables of srun, torchrun, Open MPI, MPICH: rank and number of processes."""
