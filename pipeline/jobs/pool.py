"""Several processes of one machine that help a command: `--jobs N`."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import TypeVar

import torch

from pipeline.cli import Failed

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    call: Callable[[Item], Result], items: Sequence[Item], jobs: int, remedy: str
) -> Iterator[Result]:
    """Yield `call(item)` of every item, in their order; of one job, in this process.

    Args:
        call: Can be pickled.
        items: What it is called with.
        jobs: Processes at most.
        remedy: What to do if one is killed.

    Raises:
        Failed: If a process is killed.
    """
    if (jobs := min(jobs, len(items))) <= 1:
        yield from map(call, items)
        return
    # Not forked: threads of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin) as pool:
        try:
            yield from pool.map(call, items)
        except BrokenProcessPool:
            raise Failed(
                f"expected {jobs} processes at work, got one that was killed, perhaps for lack of "
                f"memory; {remedy}"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # those that wait, after an error


def _begin() -> None:
    """Begin a process that helps another: one core, no Ctrl-C, and never without its parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
