"""What `accelerate launch` leaves undone for a single process: to end it with the launcher.

torchrun hands signals on; accelerate's launcher of one process dies of them at once, and what it
started would train on unnoticed.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

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


def _command(process: int) -> bytes:
    """Return the command line of a process, its words ended by zeros."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # gone, or hidden from us
        return b""
