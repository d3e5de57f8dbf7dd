"""Image of index i under a seed, from any student."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.equilibrium import DeltaMemory
from get.models import Student
from get.models.checks import check_labels
from get.noise import draw_start


@torch.no_grad()
def generate(
    model: Student,
    noise: Float[Tensor, "batch channels side side"],
    labels: Int[Tensor, " batch"] | None,
    *,
    seed: int,
    indices: Sequence[int],
    z0: Float[Tensor, "batch ..."] | None = None,
    iterations: int | None = None,
    tol: float = 0.0,
    delta: DeltaMemory | None = None,
    batch_size: int = 256,
) -> Float[Tensor, "batch channels side side"]:
    """Make images of given noise; what else is random comes from (seed, index) too.

    Args:
        model: The distilled model.
        noise: Unit normal noise.
        labels: Class indices; None exactly if the model is unconditional.
        seed: Names, with `indices`, the random starts of a model that draws them.
        indices: One a sample.
        z0: What `random_start` returns for these; None draws it, a batch at a time.
        iterations: Number of iterations; None takes the model's own.
        tol: An image stops iterating at this relative residual; 0 never stops early.
        delta: Skips small changes from one iteration to the next; None skips nothing.
        batch_size: Images at once; has no influence on them.

    Returns:
        Images on the CPU, nominally in [-1, 1].

    Raises:
        InputError: If the arguments do not fit the model.
    """
    if isinstance(labels, Tensor) and labels.device.type == "cpu" and model.num_classes:
        check_labels(labels, model.num_classes)
    parts = []
    device = model.device  # diffusers walks over all modules for it
    for at in range(0, len(noise), batch_size):
        rows = slice(at, at + batch_size)
        classes = None if labels is None else labels[rows].to(device)
        start = random_start(model, seed, indices[rows]) if z0 is None else z0[rows].to(device)
        images = model.images(
            noise[rows].to(device),
            classes,
            iterations=iterations,
            z0=start,
            tol=tol,
            delta=delta,
        )
        parts.append(images.float().cpu())
    return torch.cat(parts)


def random_start(
    model: Student, seed: int, indices: Sequence[int]
) -> Float[Tensor, "batch ..."] | None:
    """Draw the random starts of the iteration of some samples.

    Args:
        model: The distilled model.
        seed: As in `generate`.
        indices: One a sample.

    Returns:
        Unit normal float32 numbers, `model.start_shape` a sample, on the model's device; None if
        the model draws none.

    Raises:
        InputError: If seed or an index is out of range.
    """
    if model.start_shape is None:
        return None
    return draw_start(seed, indices, model.start_shape).to(model.device)
