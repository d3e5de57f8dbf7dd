"""Verbs: one script a stage. Nobody imports this package but its own scripts.

Ctrl-C may come while a script still imports what it needs: it ends in one line then as well.
"""

import sys
from types import TracebackType


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by SIGINT; run the same command to continue", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _in_one_line
