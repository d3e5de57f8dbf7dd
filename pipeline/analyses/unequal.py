"""Training sets in which some classes have many images and the others few.

Real images, or images of a class-conditional student where ratios ask for more than there are.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.real import Labelled, real_images
from get.errors import InputError
from get.metrics.features import load_classifier
from get.noise import draw
from get.sampling import generate
from pipeline.analyses.settings import CollapseConfig
from pipeline.jobs.students import load_student

DECAY = 0.5  # weight decay of the last layer in the whole grid
SPARE = 1.2  # images of a student made for each one needed: those of unclear class are left out


class Cell(NamedTuple):
    """A kind of training set.

    Attributes:
        source: Whose images: "real" or "student".
        majorities: Number of majority classes; 0 if all classes have as many images.
        ratio: Images of a majority class over those of a minority class.
        decay: Weight decay of the last layer in training.
    """

    source: str
    majorities: int
    ratio: int
    decay: float = 0.0

    @property
    def name(self) -> str:
        """What files and tables call it."""
        unequal = f"{self.majorities}major-ratio{self.ratio}"
        decay = f"-decay{self.decay:g}" if self.decay else ""
        return f"{self.source}-{'balanced' if self.ratio == 1 else unequal}{decay}"


class Unequal(NamedTuple):
    """A training set and its majority classes.

    Attributes:
        images: The images with their classes.
        majority: Majority classes; all of them if the set is balanced.
        minority: The other classes.
    """

    images: Labelled
    majority: list[int]
    minority: list[int]


def cells(config: CollapseConfig) -> list[Cell]:
    """Return the training sets that are asked for, the balanced ones first."""
    majorities, decays = dict.fromkeys(config.majorities), dict.fromkeys(config.weight_decays)
    if config.full:
        majorities[7] = decays[DECAY] = None
    found = []
    for decay, count in product(decays, majorities):
        for source, ratios in (("real", config.ratios), ("student", config.student_ratios)):
            if source == "real" or config.student is not None:
                found += [Cell(source, 0 if r == 1 else count, r, decay) for r in ratios]
    return list(dict.fromkeys(found))


def training_set(config: CollapseConfig, cell: Cell, seed: int) -> Unequal:
    """Return the images of a cell; the seed chooses classes and images.

    Raises:
        InputError: If there are too few images or classes.
    """
    pool = real(config.real_images) if cell.source == "real" else made(config)
    classes = int(pool.labels.max()) + 1
    if not 0 <= cell.majorities <= classes - 2:
        raise InputError(
            f"expected at most {classes - 2} majority classes of the {classes} in "
            f"{config.real_images}, got {cell.majorities}; two minority classes are compared"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(classes, generator=generator).tolist()
    majority = sorted(order[: cell.majorities or classes])
    minority = sorted(set(range(classes)) - set(majority))
    most = config.images if cell.source == "real" else config.student_images
    rows = []
    for c in range(classes):
        there = (pool.labels == c).nonzero().flatten()
        if len(there) < most:
            raise InputError(
                f"expected {most} training images of every class in {config.real_images}, got "
                f"{len(there)} of class {c}; set images lower"
            )
        count = most if c in majority else most // cell.ratio
        rows.append(there[torch.randperm(len(there), generator=generator)[:count]])
    chosen = torch.cat(rows)
    return Unequal(Labelled(pool.images[chosen], pool.labels[chosen]), majority, minority)


@lru_cache(maxsize=2)
def real(name: str) -> Labelled:
    """Return the real training images."""
    return real_images(name, "training")


def made(config: CollapseConfig) -> Labelled:
    """Return images of the student, with the classes they were asked for."""
    assert config.student is not None
    return _made(config.student, config.classifier, config.student_images)


@lru_cache(maxsize=1)
def _made(student: Path, classifier: Path, count: int) -> Labelled:
    model, judge = load_student(student, torch.device("cpu")), load_classifier(classifier)
    if model.num_classes is None:
        raise InputError(
            f"expected a class-conditional student in {student}, got one without classes; leave "
            "out --student, or train one on pairs with labels"
        )
    labels = torch.arange(model.num_classes).repeat_interleave(int(SPARE * count))
    indices = range(len(labels))
    noise, _ = draw(0, indices, model.image_shape)
    images = generate(model, noise, labels, seed=0, indices=indices).clamp(-1, 1)
    with torch.no_grad():
        right = torch.cat([judge(part).argmax(1) for part in images.split(512)]) == labels
    return _first(Labelled(images[right], labels[right]), count, range(model.num_classes))


def _first(pool: Labelled, count: int, classes: Sequence[int]) -> Labelled:
    rows: list[Tensor] = [(pool.labels == c).nonzero().flatten()[:count] for c in classes]
    chosen = torch.cat(rows)
    return Labelled(pool.images[chosen], pool.labels[chosen])
