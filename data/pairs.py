"""The one type for noise, images and labels, from the files on disk to the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from get.images import from_uint8


@dataclass(frozen=True, eq=False)
class Pairs:
    """Noise and the images that a teacher makes of it, a row per pair.

    Attributes:
        noise: Unit normal noise.
        images: As stored (uint8, float16 or float32), or floats in [-1, 1].
        labels: Class indices; None if unlabelled.
        states: States of the teacher's sampler between noise and image, float16 as stored, in the
            order and form of `Manifest.trajectory`; None if there are none or nobody asked.
    """

    noise: Float[Tensor, "pairs channels height width"]
    images: Shaped[Tensor, "pairs channels height width"]
    labels: Int[Tensor, " pairs"] | None
    states: Float[Tensor, "pairs points channels height width"] | None = None

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.noise)

    def take(self, at: slice | Int[np.ndarray, " chosen"] | Int[Tensor, " chosen"]) -> "Pairs":
        """Return the pairs at these positions; a view for a slice, otherwise a copy."""
        index = torch.from_numpy(at) if isinstance(at, np.ndarray) else at
        return self._each(lambda rows: rows[index])

    def to(self, device: torch.device) -> "Pairs":
        """Copy to a device without waiting for it, to a GPU from pinned memory."""
        pinned = self._each(lambda rows: rows.pin_memory()) if device.type == "cuda" else self
        return pinned._each(lambda rows: rows.to(device, non_blocking=True))

    def as_floats(self) -> "Pairs":
        """Return these pairs with float32 images in [-1, 1] and float32 states."""
        stored = self.images
        images = from_uint8(stored) if stored.dtype == torch.uint8 else stored.float()
        states = None if self.states is None else self.states.float()
        return Pairs(self.noise, images, self.labels, states)

    @staticmethod
    def cat(parts: "Sequence[Pairs]") -> "Pairs":
        """Return the pairs of all parts in order; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        labels = [part.labels for part in parts if part.labels is not None]
        states = [part.states for part in parts if part.states is not None]
        return Pairs(
            torch.cat([part.noise for part in parts]),
            torch.cat([part.images for part in parts]),
            torch.cat(labels) if labels else None,
            torch.cat(states) if len(states) == len(parts) else None,
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Pairs":
        """Apply a function to all that there is."""
        labels = None if self.labels is None else function(self.labels)
        states = None if self.states is None else function(self.states)
        return Pairs(function(self.noise), function(self.images), labels, states)
