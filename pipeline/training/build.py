"""What a config says is to be trained: the student, its objective, what it is fed."""

from dataclasses import asdict

from data.manifest import Manifest
from data.reader import Order
from data.store import Source
from get.equilibrium import Anderson, Implicit, Phantom
from get.errors import InputError
from get.losses import IterateLoss
from get.models import GET, Equilibrium, ViT
from get.models.layers import Block
from pipeline.recipes.settings_train import GETModel, TrainConfig


def build_student(config: TrainConfig, manifest: Manifest) -> GET | ViT:
    """Build the student for images and classes like those of the pairs."""
    channels, size, _ = manifest.image_shape
    shape = asdict(config.model)
    common = {"image_size": size, "channels": channels, "num_classes": manifest.num_classes}
    if isinstance(config.model, GETModel):
        student = GET(**common, **shape)
        if config.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        return student
    if config.gradient_checkpointing:
        raise InputError("expected a GET for gradient_checkpointing, got a ViT; leave it off")
    return ViT(**common, **shape)


def training_module(config: TrainConfig, student: GET | ViT) -> IterateLoss:
    """Wrap the student in the objective that the config names."""
    equilibrium = None
    if config.gradient != "unrolled":
        steps, tol = config.solver_max_steps, config.solver_tol
        gradient = {
            "phantom": Phantom(steps=config.phantom_steps, damping=1.0),
            "implicit": Implicit(solver=Anderson(), max_steps=steps, tol=tol),
        }[config.gradient]
        equilibrium = Equilibrium(gradient=gradient, solver=Anderson(), max_steps=steps, tol=tol)
    iterations = config.unrolled_iterations
    return IterateLoss(student, config.loss, iterations=iterations, equilibrium=equilibrium)


def compile_blocks(student: GET | ViT) -> None:
    """Compile every transformer block in place: one graph a kind, and weights keep their names."""
    for block in student.modules():
        if isinstance(block, Block):
            block.compile()


def check_batch(config: TrainConfig, processes: int) -> None:
    """Check that the global batch divides into processes and micro-steps.

    Raises:
        InputError: If it does not, or train_batch_size contradicts it.
    """
    parts = processes * config.gradient_accumulation_steps
    each, rest = divmod(config.global_batch_size, parts)
    if rest or config.train_batch_size not in (None, each):
        raise InputError(
            f"expected global_batch_size {config.global_batch_size} = train_batch_size x "
            f"{processes} processes x {config.gradient_accumulation_steps} micro-steps, got "
            f"train_batch_size {config.train_batch_size}; change one of them"
        )


def order_of(config: TrainConfig, source: Source, shards: int, pairs_per_shard: int) -> Order:
    """Return the order in which so many training shards are read.

    Raises:
        InputError: If numbers do not divide.
    """
    return Order(
        source=source,
        shards=shards,
        pairs_per_shard=pairs_per_shard,
        seed=config.seed,
        streams=config.streams,
        batch_size=config.global_batch_size,
    )
