"""The loader processes of a reader: they outlive signals while training needs them, never longer.

reader.py says what they read.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader

from data.pairs import Pairs
from get.errors import InputError

Part = tuple[Pairs, dict[int, str]]
"""What a loader process gives to a batch, and the errors of the damaged shards it found first."""


def assemble_ahead(loader: DataLoader) -> Iterator[Part]:
    """Yield whole batches; with loader workers, a thread puts the next one together meanwhile.

    The workers end with the iterator.

    Args:
        loader: Gives parts of readers 0, 1, ..., then again.
    """
    if not loader.num_workers:
        yield from _assemble(loader, 1)
        return
    atexit.unregister(_kill_children)  # once is enough
    atexit.register(_kill_children)  # runs before Python waits for its children
    others, here = multiprocessing.active_children(), os.getpid()
    items = iter(loader)  # starts the workers
    _ignore_deaths()
    own = [process for process in multiprocessing.active_children() if process not in others]
    batches = _assemble(_named_deaths(items, own), loader.num_workers)
    thread = ThreadPoolExecutor(1, thread_name_prefix="assemble")
    following = thread.submit(next, batches)
    try:
        while True:
            batch = following.result()
            following = thread.submit(next, batches)
            yield batch
    finally:
        if os.getpid() == here:  # not in a process that was forked meanwhile
            if following.cancel() or futures.wait([following], timeout=1).done:
                # Asked to, idle workers end at once. One that is killed while it looks at a lock
                # keeps it, and DataLoader would wait for it when it is dropped.
                items._shutdown_workers()  # pyrefly: ignore[missing-attribute]
            thread.shutdown(wait=False)
            _kill(own)


def _assemble(items: Iterable[Part | str], readers: int) -> Iterator[Part]:
    """Put the parts of every batch together."""
    parts: list[Pairs] = []
    damage: dict[int, str] = {}
    for item in items:  # DataLoader asks its workers in turn
        if isinstance(item, str):
            raise InputError(item)
        parts.append(item[0])
        damage |= item[1]
        if len(parts) == readers:
            yield Pairs.cat(parts).as_floats(), damage
            parts, damage = [], {}


def ignore_signals(worker: int) -> None:
    """Let a loader worker survive signals: training needs batches until its state is saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _kill_children() -> None:
    """Kill the loader workers that are left when Python ends, after a crash for instance.

    Python itself would send them SIGTERM, which they ignore, and wait for them for ever.
    """
    _kill(multiprocessing.active_children())


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        if process.daemon:
            process.kill()


def _ignore_deaths() -> None:
    """Keep torch from raising, wherever this process is, as soon as a loader worker dies.

    It is noticed where the next batch is needed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _named_deaths(
    chunks: Iterable[Part | str], workers: Sequence[BaseProcess]
) -> Iterator[Part | str]:
    """Pass chunks on; say so in one line if a loader worker has died."""
    try:
        yield from chunks
    except (RuntimeError, OSError, EOFError) as error:  # whichever DataLoader meets first
        # Its connections close before it is dead.
        if not wait([process.sentinel for process in workers], timeout=1):
            raise
        raise InputError(
            f"expected {len(workers)} loader workers, got one that was killed, perhaps for lack of "
            "memory; choose a smaller --dataloader_num_workers"
        ) from error
