"""What a teacher is to those who let it write pairs; the kinds of teachers are beside this file."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from data.teachers.settings import Execution, Sampler


@runtime_checkable  # the tests check annotations
class Teacher(Protocol):
    """Noise (and label) to image, deterministic.

    Attributes:
        image_shape: Channels, height, width of noise and image.
        num_classes: Number of classes; None if unconditional.
        evaluations: Network evaluations an image.
        fingerprint: SHA-256 of all that decides the image: weights, configuration, settings.
        sampler: The sampler's settings.
    """

    image_shape: tuple[int, int, int]
    num_classes: int | None
    evaluations: int
    fingerprint: str
    sampler: Sampler

    def __call__(
        self,
        noise: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images, nominally in [-1, 1], of unit normal noise."""
        ...


@runtime_checkable
class Recorded(Protocol):
    """What the manifest tells besides, of teachers that have it.

    Attributes:
        execution: Precision and speed.
        vae_source: Folder or hub id whose `vae/` decodes the teacher's latents; None if it makes
            images.
    """

    execution: Execution
    vae_source: str | None
