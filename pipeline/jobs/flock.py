"""A lock on a file, which ends with the process that holds it, however that ends."""

import errno
import fcntl
import sys
from pathlib import Path
from typing import IO

from get.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without flock, some NFS


def take(file: IO, folder: Path, *, wait: bool = False) -> None:
    """Lock an open file; where the file system has no locks, go on with a warning.

    Args:
        file: To be locked until it is closed.
        folder: What it stands for, in messages.
        wait: Wait for other jobs.

    Raises:
        InputError: If another job has it and this one does not wait.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise InputError(
            f"expected {folder} to be free, got another job at work in it; wait for it or "
            "choose another output_dir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warning = f"{folder}: no locks there ({error.strerror}); only one job may work in it"
        print(warning, file=sys.stderr)
