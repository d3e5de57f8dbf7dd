"""What launchers leave undone: to end a process with its launcher, to share a machine's cores.

torchrun hands signals on; accelerate's launcher of one process dies of them at once, and what it
started would train on unnoticed.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path

COMPILERS = "TORCHINDUCTOR_COMPILE_THREADS"  # else as many as there are cores, up to 32
PR_SET_PDEATHSIG = 1  # sys/prctl.h: the signal that a process gets when its parent dies
LAUNCHER = re.compile(rb"\0([^\0]*/)?accelerate(-launch)?\0|\0accelerate\.commands\.launch\0")


def end_with_launcher() -> None:
    """Let this process get SIGTERM as soon as accelerate's launcher has died (Linux only)."""
    parent = os.getppid()
    if sys.platform != "linux" or not LAUNCHER.search(_command(parent)):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has died meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give each process of a machine its part of the cores to compile with, unless it is told.

    Torch would start as many compilers in each of them as in one; it asks when it is imported.
    """
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        environment.setdefault(COMPILERS, str(min(32, max(1, cores // processes))))


def _command(process: int) -> bytes:
    """Return the command line of a process, its words ended by zeros."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # gone, or hidden from us
        return b""
