"""Which part of the work a job does, as each scheduler says it."""

import pytest

from get.errors import InputError
from pipeline.jobs.processes import local_rank
from pipeline.jobs.share import share

ARRAY_ID = "SLURM_ARRAY_TASK_ID"
ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "10"}
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "8"}
ONE_NODE, TWO_NODES = ({"GROUP_WORLD_SIZE": n} for n in "12")
MPIRUN = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "6"}
SGE = {"SGE_TASK_ID": "5", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        (TORCHRUN, (2, 8)),
        (SRUN, (1, 4)),
        (ARRAY, (3, 10)),
        (SRUN | TORCHRUN | TWO_NODES, (2, 8)),  # torchrun in every srun task, all together
        (SRUN | TORCHRUN, (2, 8)),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, (1, 4)),
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "1"}, (2, 10)),
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, (1, 10)),
        (MPIRUN, (5, 6)),
        (MPIRUN | {"LSB_JOBINDEX": "0"}, (5, 6)),  # no array
        (SRUN | MPIRUN, (5, 6)),  # mpirun starts a daemon a node by srun
        (SGE, (2, 5)),
        (KUBERNETES | TORCHRUN | TWO_NODES, (2, 8)),  # torchrun over all pods
    ],
)
def test_the_environment_says_which_share_is_ours(environment, expected):
    assert share(None, None, environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (ARRAY | SRUN, (3 * 4 + 1, 40)),
        (ARRAY | TORCHRUN | ONE_NODE, (3 * 8 + 2, 80)),
        (SRUN | TORCHRUN | ONE_NODE, (1 * 8 + 2, 32)),
        (ARRAY | SRUN | TORCHRUN | TWO_NODES, (3 * 8 + 2, 80)),
    ],
)
def test_processes_inside_the_element_of_an_array_have_shares_of_their_own(environment, expected):
    assert share(None, None, environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4"},  # salloc -n4
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # sbatch --ntasks=4
    ],
)
def test_one_process_in_an_allocation_of_many_does_everything(environment):
    assert share(None, None, environment) == (0, 1)


def test_flags_go_before_the_environment():
    assert share(5, 6, ARRAY | SRUN | TORCHRUN) == (5, 6)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (KUBERNETES, 4),
        (ARRAY, 3),
        (SRUN, 1),
        (TORCHRUN, 2),
        (MPIRUN, 5),
        ({"PBS_ARRAY_INDEX": "7"}, 7),
        ({"LSB_JOBINDEX": "8"}, 8),
        (KUBERNETES | TORCHRUN | ONE_NODE, 34),
        ({"SLURM_ARRAY_TASK_COUNT": "100", "SLURM_ARRAY_TASK_MIN": "1"} | {ARRAY_ID: "100"}, 99),
    ],
)
def test_the_number_of_tasks_alone_takes_the_index_from_the_environment(environment, expected):
    assert share(None, 100, environment) == (expected, 100)


@pytest.mark.parametrize(
    ("index", "count", "environment"),
    [
        *((3, None, {}), (None, 4, {}), (4, 4, {}), (-1, 4, {}), (0, 0, {})),
        # an array of the remaining elements has other numbers than the first one
        (None, None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2"}),
        # 7 of 0-99 or of 1-100?
        (None, 100, {ARRAY_ID: "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "7"}),
        # how many there are is not known
        (None, None, KUBERNETES),
        (None, None, KUBERNETES | TORCHRUN | ONE_NODE),
        (None, None, {"PBS_ARRAY_INDEX": "7"}),
    ],
)
def test_a_share_that_cannot_be_known_is_refused(index, count, environment):
    with pytest.raises(InputError, match="--num_tasks"):
        share(index, count, environment)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"SLURM_LOCALID": "3"}, 3),
        ({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 2),
        ({"SLURM_LOCALID": "1", "LOCAL_RANK": "5"}, 5),
    ],
)
def test_processes_of_a_machine_have_numbers_by_which_they_choose_a_gpu(environment, expected):
    assert local_rank(environment) == expected


def test_strange_variables_of_the_environment_do_no_harm():
    long = {"CHECKSUM": "1" * 5000, "SGE_TASK_ID": "undefined"}
    assert share(None, None, long) == (0, 1)
    assert share(None, None, ARRAY | long | {"SLURM_ARRAY_TASK_STEP": "0"}) == (3, 10)


def test_shares_are_disjoint_and_complete():
    shards = range(23)
    parts = [shards[i::n] for i, n in (share(i, 5, {}) for i in range(5))]
    assert sorted(shard for part in parts for shard in part) == list(shards)
