"""Train an image classifier on any set of labelled images, a step at a time.

`train_equilibrium_classifier.py` does it in a run folder. Whoever wants to look at the network
while it learns (its features, say) iterates over `training_of`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.real import Labelled
from get.equilibrium import fixed_point
from get.errors import InputError
from get.models.image_classifier import EquilibriumClassifier, ImageClassifier
from get.noise import step_seed
from pipeline.recipes.settings_classify import ImageClassifierConfig
from pipeline.training.optimizers import build_optimizers
from pipeline.training.updates import Updates

UNROLLED = 3  # plain steps with a loss each, in the window
WEIGHTS = (0.25, 0.5, 1.0)  # of their losses


class Progress(NamedTuple):
    """A classifier after so many steps of its training.

    Attributes:
        steps: Steps made.
        model: The network as it is trained; copy it to keep it.
        average: The network with averaged weights.
        values: Loss, accuracy on the batch, relative residual of the state (nan for an explicit
            network) and gradient norm of the last step.
    """

    steps: int
    model: ImageClassifier
    average: ImageClassifier
    values: dict[str, Tensor]


class ClassifierTraining:
    """The training of a classifier on labelled images.

    Attributes:
        model: The network that is trained.
        updates: Its optimisers and averaged weights.
    """

    def __init__(
        self, config: ImageClassifierConfig, images: Labelled, num_classes: int | None = None
    ) -> None:
        """Build the network for these images.

        Args:
            config: The settings; its folder is not used.
            images: What it learns from, any subset of a data set.
            num_classes: Classes; None counts those of the images.

        Raises:
            InputError: If all images are of one class.
        """
        classes = num_classes or int(images.labels.max()) + 1
        if classes < 2:
            raise InputError("expected images of at least two classes, got one")
        self.config, self.images = config, images
        torch.manual_seed(config.seed)
        _, channels, size, _ = images.images.shape
        self.model = config.model.build(size, channels, classes)
        self.model.to(images.images.device)  # pyrefly: ignore[bad-argument-type]  diffusers wraps it
        self.updates = Updates(config, self.model, build_optimizers(config, self.model))

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Make one step; return loss, accuracy, residual and gradient norm of its batch."""
        config, (images, labels) = self.config, self.images
        generator = torch.Generator().manual_seed(step_seed(config.seed, step))
        chosen = torch.randint(len(images), (config.global_batch_size,), generator=generator)
        batch, targets = images[chosen], labels[chosen]
        if config.noise:
            noise = torch.randn(batch.shape, generator=generator)
            batch = batch + config.noise * noise.to(batch.device)
        logits, weights, residual = self._logits(batch, generator)
        losses = [F.cross_entropy(x, targets) for x in logits]
        loss = torch.stack([w * x for w, x in zip(weights, losses, strict=True)]).sum()
        loss.backward()
        accuracy = (logits[-1].argmax(1) == targets).float().mean()
        norm = self.updates()
        return {"loss": losses[-1], "accuracy": accuracy, "residual": residual, "grad_norm": norm}

    def _logits(
        self, batch: Tensor, generator: torch.Generator
    ) -> tuple[list[Tensor], tuple[float, ...], Tensor]:
        """Return the logits that have a loss, the weights of these losses, and the residual."""
        model = self.model
        if not isinstance(model, EquilibriumClassifier):
            return [model(batch)], (1.0,), batch.new_zeros(())
        if self.config.gradient == "phantom":
            solution = model.solve(batch)
            return [model.logits_of(solution.z)], (1.0,), solution.residual.mean()
        problem = model.problem(batch)
        half, (fewest, most) = len(batch) // 2, self.config.window_rollout
        steps = int(torch.randint(fewest, most + 1, (), generator=generator))
        with torch.no_grad():
            z, inputs = problem.z0[:half], [x[:half] for x in problem.inputs]
            for _ in range(steps):
                z = model.equilibrium_map(z, *inputs)
        path = fixed_point(
            model.equilibrium_map,
            torch.cat([z, problem.z0[half:]]),
            inputs=problem.inputs,
            max_steps=UNROLLED,
            select="last",
            keep_iterates=True,
        )
        return [model.logits_of(z) for z in path.iterates], WEIGHTS, path.residual.mean()


def training_of(
    config: ImageClassifierConfig, images: Labelled, num_classes: int | None = None, every: int = 1
) -> Iterator[Progress]:
    """Train a classifier on these images; yield it after every `every` steps and the last one.

    Args:
        config: The settings; nothing is written to its folder.
        images: What it learns from, any subset of a data set.
        num_classes: Classes; None counts those of the images.
        every: Steps from one yield to the next.
    """
    training = ClassifierTraining(config, images, num_classes)
    for step in range(config.max_train_steps):
        values = training(step)
        if (step + 1) % every == 0 or step + 1 == config.max_train_steps:
            yield Progress(step + 1, training.model, training.updates.average, values)


@torch.no_grad()
def accuracy_of(model: ImageClassifier, data: Labelled, noise: float = 0.0, seed: int = 0) -> float:
    """Return the share of images, with noise of this deviation, that are classified rightly."""
    generator = torch.Generator().manual_seed(seed)
    images = data.images
    if noise:
        images = images + noise * torch.randn(images.shape, generator=generator)
    right = model(images.to(model.device)).argmax(1).cpu() == data.labels
    return round(float(right.float().mean()), 4)
