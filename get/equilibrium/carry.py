"""What a map remembers from one evaluation to the next of the same solve.

Such a memory is no part of the state: residuals do not see it. `iterate.py` empties it when a solve
begins, tells it which samples to evaluate in full, and removes samples that leave the batch.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor


@runtime_checkable  # the tests check annotations
class Carry(Protocol):
    """A memory that lets a map take shortcuts; `delta.py` has one."""

    def start(self) -> None:
        """Forget everything: a solve begins."""
        ...

    def next(self, full: Bool[Tensor, " rows"] | bool) -> None:
        """Announce the next evaluation of the map; samples in `full` may take no shortcut."""
        ...

    def take(self, rows: Int[Tensor, " some"]) -> None:
        """Keep what is known of these samples, in this order."""
        ...
