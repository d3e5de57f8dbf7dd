"""One piece of work at a time in a thread beside a training; its errors reach the training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Beside:
    """Does what it is given, in order, while the training goes on."""

    def __init__(self) -> None:
        """Nothing to do yet."""
        self._thread = ThreadPoolExecutor(1)
        self._work: Future | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin, once the work before is done; raise its error if it has failed."""
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise the error of work that has failed; do not wait."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the work; raise its error if it has failed."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def end(self) -> BaseException | None:
        """Wait for the work; return its error if it has failed and nobody has heard of it."""
        work, self._work = self._work, None
        self._thread.shutdown()
        return None if work is None else work.exception()

    def settle(self) -> None:
        """Wait for the work; its error is kept for later."""
        if self._work is not None:
            wait([self._work])
