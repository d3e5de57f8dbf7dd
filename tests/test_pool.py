"""Several processes that help a command."""

import math
import os

import pytest

from pipeline.cli import Failed
from pipeline.jobs.pool import in_processes


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items(jobs: int):
    assert [*in_processes(math.factorial, range(5), jobs, "")] == [1, 1, 2, 6, 24]
    assert [*in_processes(math.factorial, [], jobs, "")] == []


def test_a_killed_process_is_named():
    with pytest.raises(Failed, match=r"expected 2 processes .* got one that was killed, .*; rest"):
        [*in_processes(os._exit, [1, 1], 2, "rest")]
