"""Which part of the work a job does, as each scheduler says it."""

import pytest

from get.errors import InputError
from pipeline.jobs.share import share

ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "10"}
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        (TORCHRUN, (2, 8)),
        (SRUN, (1, 4)),
        (ARRAY, (3, 10)),
        (ARRAY | SRUN | TORCHRUN, (3, 10)),
        (SRUN | TORCHRUN, (2, 8)),  # torchrun in every srun task
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, (1, 4)),
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "1"}, (2, 10)),
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, (1, 10)),
        ({"JOB_COMPLETION_INDEX": "4"}, (0, 1)),  # Kubernetes does not say how many there are
    ],
)
def test_the_environment_says_which_share_is_ours(environment, expected):
    assert share(None, None, environment) == expected


def test_flags_go_before_the_environment():
    assert share(5, 6, ARRAY | SRUN | TORCHRUN) == (5, 6)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"JOB_COMPLETION_INDEX": "4"}, 4), (ARRAY, 3), (SRUN, 1), (TORCHRUN, 2)],
)
def test_the_number_of_tasks_alone_takes_the_index_from_the_environment(environment, expected):
    assert share(None, 100, environment) == (expected, 100)


@pytest.mark.parametrize(
    ("index", "count", "environment"),
    [
        *((3, None, {}), (None, 4, {}), (4, 4, {}), (-1, 4, {}), (0, 0, {})),
        # an array of the remaining elements has other numbers than the first one
        (None, None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2"}),
    ],
)
def test_a_share_that_cannot_be_is_refused(index, count, environment):
    with pytest.raises(InputError, match="--num_tasks"):
        share(index, count, environment)


def test_shares_are_disjoint_and_complete():
    shards = range(23)
    parts = [shards[i::n] for i, n in (share(i, 5, {}) for i in range(5))]
    assert sorted(shard for part in parts for shard in part) == list(shards)
