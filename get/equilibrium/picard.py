"""Plain (Picard) iteration, optionally damped: z <- (1 - damping) z + damping f(z)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Picard:
    """Damped fixed-point iteration, without memory.

    Attributes:
        damping: Step length in (0, 1]; 1 is z <- f(z).
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a step length outside (0, 1]."""
        if not 0 < self.damping <= 1:
            raise ValueError(f"expected damping in (0, 1], got {self.damping}")

    def init(self, z: Tensor, max_steps: int) -> tuple[Tensor, ...]:
        """Return the empty state."""
        return ()

    def step(
        self, k: int, z: Tensor, fz: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the next z from z and f(z)."""
        return (fz if self.damping == 1 else z + self.damping * (fz - z)), state
