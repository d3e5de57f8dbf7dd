"""Certificates: what is counted, what is refused, and that attacks inside a radius fail."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data.real import real_images
from get.attack import attack, share_of_votes
from get.confidence import certified_radius, lower_bound
from get.equilibrium import Picard
from get.errors import InputError
from get.models.image_classifier import EquilibriumClassifier
from get.robustness import REFERENCE, Labelling, audit, certify, label_copies
from pipeline.recipes.settings_classify import EquilibriumShape, ImageClassifierConfig
from pipeline.training.classify import training_of

from .problems import normal, seeded

PLAIN = Labelling(solver=Picard(), max_steps=2)
SERIAL = replace(PLAIN, start="serial", batch_size=10)


def classifier() -> EquilibriumClassifier:
    """Return a small equilibrium classifier whose map contracts."""
    torch.manual_seed(0)
    model = EquilibriumClassifier(width=16, heads=2, num_classes=3)
    with torch.no_grad():
        for parameter in model.equilibrium_blocks.parameters():
            parameter.mul_(0.5)
    return model.eval()


class HalfSpace(nn.Module):
    """Class 1 where the mean pixel, times the root of their number, is above an edge."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, images: Tensor) -> Tensor:
        distance = images.flatten(1).sum(1) / images[0].numel() ** 0.5 - self.edge
        return torch.stack([-distance, distance], 1)


IMAGE = normal(1, channels=1)[0]


def at(distance: float) -> Tensor:
    """Return an image at this distance from the edge at 0, on the side of class 1."""
    return torch.full((1, 8, 8), distance / 8)


def test_the_radius_of_a_half_space_is_just_below_the_distance_to_its_edge():
    found = certify(HalfSpace(0.0), at(0.5), sigma=0.5, trials=5000, selection=50)
    assert found.label == 1
    assert 0.42 < found.radius < 0.5
    assert found.evaluations == 0
    assert certify(HalfSpace(0.0), at(0.0), sigma=0.5, trials=500).label is None


def test_a_certificate_is_the_bound_of_the_votes_counted_on_noise_of_the_image():
    model = classifier()
    given = {"sigma": 3.0, "trials": 300, "selection": 50}
    found, again, other = (certify(model, IMAGE, **given, index=index) for index in (7, 7, 8))
    assert found == again != other
    votes = next(k for k in range(301) if lower_bound(k, 300, 1e-3) >= found.probability)
    assert found.probability == lower_bound(votes, 300, 1e-3)
    assert found.radius == certified_radius(found.probability, 3.0)


def test_every_labelling_agrees_with_the_reference_when_it_is_solved_far():
    model, noise = classifier(), 0.5 * normal(40, channels=1, seed=3)
    exact = label_copies(model, IMAGE, noise, Labelling(tol=1e-6, max_steps=60))
    for start, shifted in (("zeros", False), ("clean", False), ("clean", True), ("serial", True)):
        how = Labelling(start=start, tol=1e-6, max_steps=60, shifted=shifted, batch_size=20)
        found = label_copies(model, IMAGE, noise, how)
        assert found.labels.equal(exact.labels)
        assert (found.once > 0) == (start == "clean")


def test_evaluations_are_those_of_each_copy_and_a_chain_begins_with_a_full_solve():
    model, noise = classifier(), 0.5 * normal(30, channels=1, seed=3)
    assert label_copies(model, IMAGE, noise, PLAIN).evaluations.tolist() == [2] * 30
    chains = label_copies(model, IMAGE, noise, SERIAL).evaluations
    first = label_copies(model, IMAGE, noise[:10], REFERENCE).evaluations
    assert chains.tolist() == [*first.tolist(), *[2] * 20]


def test_labels_of_a_chain_do_not_depend_on_the_other_chains():
    model, noise = classifier(), 0.5 * normal(30, channels=1, seed=3)
    together = label_copies(model, IMAGE, noise, SERIAL).labels
    alone = label_copies(model, IMAGE, noise[[2, 12, 22]], replace(SERIAL, batch_size=1)).labels
    assert alone.equal(together[[2, 12, 22]])


def test_labels_that_know_the_image_are_not_counted_without_an_audit():
    for start in ("clean", "serial"):
        with pytest.raises(InputError, match=f"audits above 0 for start '{start}', got 0"):
            certify(classifier(), IMAGE, sigma=0.5, how=replace(PLAIN, start=start))
    with pytest.raises(InputError, match="expected a classifier that solves for start 'serial'"):
        certify(HalfSpace(0.0), IMAGE, sigma=0.5, how=SERIAL, audits=9)
    with pytest.raises(InputError, match="sigma, trials and selection above 0"):
        certify(classifier(), IMAGE, sigma=0.0)


@pytest.mark.parametrize("bound", ["stated", "audited"])
def test_an_audit_is_paid_for_and_lowers_the_bound(bound):
    model, given = classifier(), {"sigma": 0.5, "trials": 100, "selection": 10}
    few = certify(model, IMAGE, **given, how=SERIAL, audits=30, bound=bound)
    many = certify(model, IMAGE, **given, how=SERIAL, audits=100, bound=bound)
    plain = certify(model, IMAGE, **given)
    assert few.evaluations < many.evaluations
    assert few.probability < many.probability <= plain.probability + 1e-9


def test_an_audit_counts_the_votes_that_the_certified_classifier_does_not_share():
    labels = torch.tensor([1] * 60 + [0] * 40)
    truth = torch.tensor([1] * 50 + [2] * 10 + [0] * 40)

    def reference(chosen: Tensor) -> Tensor:
        return truth[chosen]

    assert audit(labels, 1, 100, reference, seeded(0)) == (60, 10, 60)
    stated = audit(labels, 1, 100, reference, seeded(0), "stated")
    assert stated == (60, 10, 100)
    part = audit(labels, 1, 20, reference, seeded(0), "stated")
    assert part.solved == 20
    assert part.disagreeing <= part.audited < 20


# ---------------------------------------------------------------- attacks


def test_an_attack_finds_the_shortest_way_over_an_edge_and_no_shorter_one():
    given = {"sigma": 0.5, "generator": seeded(0)}
    for radius, breaks in ((0.45, False), (0.55, True)):
        shifts = attack(HalfSpace(0.0), at(0.5), 1, radius=radius, **given)
        assert (shifts.flatten(1).norm(dim=1) <= radius * 1.0001).all()
        share = min(
            share_of_votes(HalfSpace(0.0), at(0.5) + shift, 1, copies=4000, **given)
            for shift in shifts
        )
        assert (share < 0.5) == breaks


def test_an_attack_of_no_length_is_refused():
    with pytest.raises(InputError, match="steps, restarts and copies above 0"):
        attack(HalfSpace(0.0), IMAGE, 1, radius=0.5, sigma=0.5, generator=seeded(0), steps=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_attack_is_found_inside_the_radii_of_a_trained_classifier():
    shape = EquilibriumShape(width=24, max_steps=20)
    config = ImageClassifierConfig(output_dir=Path("unused"), model=shape, max_train_steps=300)
    *_, last = training_of(config, real_images("digits", "training"), every=300)
    images, labels = real_images("digits", "held_out")
    generator = seeded(0)
    broken = {1.0: 0, 3.0: 0}
    for index in range(6):
        image, label = images[index], int(labels[index])
        found = certify(last.average, image, sigma=0.5, trials=1000, index=index)
        if found.label != label:
            continue
        for times in broken:
            given = {"sigma": 0.5, "generator": generator}
            shifts = attack(
                last.average, image, label, radius=times * found.radius, copies=16, **given,
            )  # fmt: skip
            shares = [share_of_votes(last.average, image + s, label, **given) for s in shifts]
            broken[times] += min(shares) < 0.5
    assert broken[1.0] == 0
    assert broken[3.0] >= 3
