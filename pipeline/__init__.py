"""Verbs: one script a stage. Nobody imports this package but its own scripts.

Ctrl-C may come, and a full disk show, while a script still imports what it needs: it ends in one
line then as well.
"""

import sys
from types import TracebackType


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    line = None
    if issubclass(kind, KeyboardInterrupt):
        line = "stopped by SIGINT; run the same command to continue"
    elif isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        line = (
            f"expected room for temporary files, got: {error.strerror}; "
            "set TMPDIR to a folder on another disk, or delete something"
        )
    if line is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(line, file=sys.stderr)


sys.excepthook = _in_one_line
