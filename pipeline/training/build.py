"""What the settings say is trained: the student, its objective, the order of its data."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, count

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from data.manifest import DamagedShard, Manifest, read_manifest
from data.mixture import Mixture
from data.reader import read_shard
from data.real import real_images
from data.real.features import load_network
from get.equilibrium import Anderson, Implicit, Phantom
from get.errors import InputError
from get.frechet import FrechetLoss, with_pixels
from get.losses import IterateLoss
from get.metrics import features_of
from get.models import Equilibrium, Student
from pipeline.recipes.settings_train import TrainConfig

FRECHET_REFERENCE = 50_000  # images of the teacher that the Frechet distance compares with


def build_student(config: TrainConfig, manifest: Manifest) -> Student:
    """Build the student for images and classes like those of the pairs.

    Raises:
        InputError: If gradient checkpointing is asked of one that cannot do it.
    """
    channels, size, _ = manifest.image_shape
    student = config.model.build(size, channels, manifest.num_classes)
    if config.gradient_checkpointing:
        if not student._supports_gradient_checkpointing:
            raise InputError(
                f"expected a GET for gradient_checkpointing, got a {type(student).__name__}; "
                "leave it off"
            )
        student.enable_gradient_checkpointing()
    return student


def build_frechet(
    config: TrainConfig, manifest: Manifest, order: Mixture, accelerator: Accelerator
) -> FrechetLoss | None:
    """Return the Frechet distance from the images that the settings name, if it is used.

    Each process computes the features of a part of them.

    Raises:
        InputError: If the feature network is missing or made for other images.
        DamagedShard: If a shard is damaged and may not be skipped.
    """
    if config.feature_network is None or not config.frechet_weight:
        return None
    device, rank = accelerator.device, accelerator.process_index
    network = load_network(config.feature_network, manifest.image_shape, device)
    network.requires_grad_(False)
    compared = with_pixels(network.features, config.frechet_pixels)
    if config.frechet_reference == "real" and config.real_images is not None:
        real = real_images(config.real_images, "training").images
        parts = iter([real[rank :: accelerator.num_processes]])
    else:
        parts = _teacher_images(config, order, rank, accelerator.num_processes)

    def features(images: Tensor) -> Tensor:
        return features_of(lambda x: compared(x.to(device)), images).to(device)

    empty = features(torch.zeros(1, *manifest.image_shape))[:0]  # of a process without images
    vectors = (features(part) for part in parts if len(part))
    return FrechetLoss(compared, *all_moments(chain([empty], vectors), accelerator))


def all_moments(
    vectors: Iterable[Float[Tensor, "some features"]], accelerator: Accelerator
) -> tuple[Float[Tensor, " features"], Float[Tensor, "features features"]]:
    """Return mean and covariance, float64, of the vectors of all processes.

    Raises:
        InputError: If nobody has any.
    """
    number, total, second = 0, torch.zeros(()), torch.zeros(())
    for part in vectors:
        wide = part.double()
        number, total, second = number + len(part), total + wide.sum(0), second + wide.T @ wide
    own = torch.cat([total.new_tensor([number]), total, second.flatten()])
    whole = accelerator.reduce(own, "sum")
    if not whole[0]:
        raise InputError("expected images for the Frechet distance, got none; all are damaged")
    mean, second = whole[1 : len(total) + 1] / whole[0], whole[len(total) + 1 :] / whole[0]
    return mean, second.view_as(torch.outer(mean, mean)) - torch.outer(mean, mean)


def _teacher_images(
    config: TrainConfig, order: Mixture, rank: int, processes: int
) -> Iterator[Tensor]:
    """Yield this process's part of the teacher's images that the distance is from."""
    places = count()  # of shards among all of them
    for part in order.orders:
        images = FRECHET_REFERENCE * part.batch_size / order.batch_size
        shards = min(part.shards, math.ceil(images / part.pairs_per_shard))
        own = read_manifest(part.source)
        for shard in range(shards):
            if next(places) % processes != rank:
                continue
            try:
                yield read_shard(part.source, shard, own).as_floats().images
            except DamagedShard:
                if not config.skip_damaged_shards:
                    raise


def build_objective(
    config: TrainConfig, student: Student, frechet: FrechetLoss | None = None
) -> IterateLoss:
    """Wrap the student in the loss that the settings name."""
    equilibrium = None
    if config.gradient != "unrolled":
        solve = {
            "solver": Anderson(),
            "max_steps": config.solver_max_steps,
            "tol": config.solver_tol,
        }
        # One undamped step carries the phantom gradient.
        phantom = config.gradient == "phantom"
        gradient = Phantom(steps=1, damping=1.0) if phantom else Implicit(**solve)
        equilibrium = Equilibrium(gradient=gradient, **solve)
    iterations = config.unrolled_iterations
    return IterateLoss(
        student, config.loss, iterations=iterations, equilibrium=equilibrium, frechet=frechet
    )


def check_batch(config: TrainConfig, processes: int) -> None:
    """Check that the global batch divides into processes and micro-steps.

    Raises:
        InputError: If it does not, or train_batch_size contradicts it.
    """
    parts = processes * config.gradient_accumulation_steps
    size, rest = divmod(config.global_batch_size, parts)
    if rest or config.train_batch_size not in (None, size):
        raise InputError(
            f"expected global_batch_size {config.global_batch_size} = train_batch_size x "
            f"{processes} processes x {config.gradient_accumulation_steps} micro-steps, got "
            f"train_batch_size {config.train_batch_size}; change one of them"
        )
