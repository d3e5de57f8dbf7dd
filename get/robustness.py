"""Certified robustness by randomised smoothing, for networks that solve for an equilibrium.

The smoothed classifier names the class that a base classifier gives to most noisy copies of an
image. If its probability p is above 1/2, no shift of the image shorter than sigma Phi^-1(p) changes
it (arXiv:1902.02918). p is bounded from votes of N copies, so N solves are needed.

`Labelling` says how a copy is solved. What depends on the copy alone is a base classifier of its
own, and its votes may be counted as they are: full, adaptive and truncated solves. Serialised
smoothing (NeurIPS 2024) starts the next solve at the last equilibrium of the same image: such
labels know the image, no base classifier gives them, and some of them must be audited.
`confidence.py` has the bounds, `attack.py` tries to break certificates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.confidence import audited_bound, certified_radius, lower_bound, stated_bound
from get.equilibrium import Anderson, Solver, fixed_point
from get.errors import InputError
from get.models.get import Problem
from get.noise import draw, step_seed

SolveStart = Literal["injection", "zeros", "clean", "serial"]
Bound = Literal["stated", "audited"]
BOUNDS = {"stated": stated_bound, "audited": audited_bound}


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How the noisy copies of an image are solved.

    Attributes:
        start: Where a solve starts: at the injected features, at zeros, at the equilibrium of the
            image without noise ("clean"), or at the state of the copy before ("serial"). The last
            two start at the injected features of the copy plus what the other state has beyond its
            own, if `shifted`.
        solver: Solver.
        max_steps: Most evaluations of the map; the only ones if `tol` is 0.
        tol: Relative residual at which a solve ends.
        shifted: See `start`.
        batch_size: Copies solved at once. "serial" makes so many chains; the first of each is
            solved as `REFERENCE` says.
    """

    start: SolveStart = "injection"
    solver: Solver = field(default_factory=Anderson)
    max_steps: int = 30
    tol: float = 0.0
    shifted: bool = False
    batch_size: int = 500

    @property
    def needs_audit(self) -> bool:
        """Whether a label depends on more than its noisy copy."""
        return self.start in ("clean", "serial")


REFERENCE = Labelling(tol=1e-3)
"""The base classifier that an audit compares with: solved for, each copy on its own."""


class Labels(NamedTuple):
    """Labels of noisy copies.

    Attributes:
        labels: A class a copy.
        evaluations: Evaluations of the map, for each copy.
        once: Those spent once an image, on the equilibrium without noise.
    """

    labels: Int[Tensor, " copies"]
    evaluations: Int[Tensor, " copies"]
    once: int = 0


class Certificate(NamedTuple):
    """What is known of the smoothed classifier at one image.

    Attributes:
        label: Its class; None if it abstains.
        radius: No shift shorter than this, in the L2 norm of the image, changes the class.
        probability: Lower bound of the probability of the class.
        evaluations: Evaluations of the equilibrium map in all.
    """

    label: int | None
    radius: float
    probability: float
    evaluations: int


@runtime_checkable
class Solved(Protocol):
    """A classifier that solves for its tokens: `EquilibriumClassifier`, or one of your own."""

    def problem(self, images: Tensor) -> Problem:
        """Return the problem of images; the first of its inputs are the injected features."""
        ...

    def equilibrium_map(self, z: Tensor, *inputs: Tensor) -> Tensor:
        """Return f(z), whose fixed point is looked for."""
        ...

    def logits_of(self, tokens: Tensor) -> Tensor:
        """Return the logits of a state."""
        ...


Model = Solved | Callable[[Tensor], Tensor]


@torch.no_grad()
def label_copies(
    model: Model,
    image: Float[Tensor, "channels side side"],
    noise: Float[Tensor, "copies channels side side"],
    how: Labelling = REFERENCE,
) -> Labels:
    """Label noisy copies of an image.

    Args:
        model: The classifier. Of one that is not `Solved`, any function from images to logits,
            `how` says no more than the batch size.
        image: The image.
        noise: What is added to it, of the deviation of the smoothing.
        how: How a copy is solved.
    """
    if not isinstance(model, Solved):
        if how.needs_audit:
            raise InputError(
                f"expected a classifier that solves for start {how.start!r}, got "
                f"{type(model).__name__}; others have no solve to start"
            )
        labels = torch.cat([model(image + part).argmax(1) for part in noise.split(how.batch_size)])
        return Labels(labels, torch.zeros_like(labels))
    before, once = None, 0
    if how.start == "clean":
        before, spent = _solve(model, image[None], None, REFERENCE)
        once = int(spent.sum())
    labels, evaluations = [], []
    for part in noise.split(how.batch_size):
        now = REFERENCE if how.start == "serial" and before is None else how
        state, spent = _solve(model, image + part, before, now)
        if how.start == "serial":
            before = state
        labels.append(model.logits_of(state.z).argmax(1))
        evaluations.append(spent)
    return Labels(torch.cat(labels), torch.cat(evaluations), once)


class _State(NamedTuple):
    z: Tensor
    x: Tensor  # the injected features


def _solve(
    model: Solved, images: Tensor, before: _State | None, how: Labelling
) -> tuple[_State, Tensor]:
    """Return the states of images, from where the solve starts, and the evaluations of each."""
    problem = model.problem(images)
    x = problem.inputs[0]
    z0 = torch.zeros_like(x) if how.start == "zeros" else x
    if before is not None:
        old = before.z - before.x if how.shifted else before.z
        old = old[: len(x)].expand(len(x), -1, -1)
        z0 = x + old if how.shifted else old.contiguous()
    solution = fixed_point(
        model.equilibrium_map,
        z0,
        inputs=problem.inputs,
        solver=how.solver,
        max_steps=how.max_steps,
        tol=how.tol,
        select="best" if how.tol else "last",
        compact=how.tol > 0,
    )
    return _State(solution.z, x), solution.evaluations


class Audit(NamedTuple):
    """Votes for a class that were compared with the certified classifier.

    Attributes:
        audited: Their number.
        disagreeing: Those to which it gives another class.
        solved: Copies that were solved for it.
    """

    audited: int
    disagreeing: int
    solved: int


def audit(
    labels: Int[Tensor, " copies"],
    label: int,
    count: int,
    reference: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    bound: Bound = "audited",
) -> Audit:
    """Compare fast labels with those of the certified classifier.

    Args:
        labels: Fast labels of all copies.
        label: The class that they vote for.
        count: Copies that are drawn at random: of all for the stated bound, of the votes for the
            class for the audited one, which wastes none.
        reference: Gives the certified classifier's labels of the copies with these indices.
        generator: Draws them.
        bound: What the audit is for.
    """
    among = (labels == label).nonzero()[:, 0] if bound == "audited" else torch.arange(len(labels))
    order = torch.randperm(len(among), generator=generator)[:count]
    chosen = among[order.to(among.device)].to(labels.device)
    votes = labels[chosen] == label
    wrong = votes & (reference(chosen) != label)
    return Audit(int(votes.sum()), int(wrong.sum()), len(chosen))


def bounded(
    votes: int, trials: int, alpha: float, found: Audit | None = None, bound: Bound = "audited"
) -> float:
    """Return the lower bound of the probability of a class, of votes or of votes and an audit."""
    if found is None:
        return lower_bound(votes, trials, alpha)
    return BOUNDS[bound](votes, trials, found.disagreeing, found.audited, alpha)


def certify(
    model: Model,
    image: Float[Tensor, "channels side side"],
    *,
    sigma: float,
    trials: int = 1000,
    selection: int = 100,
    how: Labelling = REFERENCE,
    audits: int = 0,
    bound: Bound = "audited",
    alpha: float = 1e-3,
    seed: int = 0,
    index: int = 0,
) -> Certificate:
    """Certify the smoothed classifier at an image (CERTIFY of arXiv:1902.02918).

    Without audits the base classifier is the network solved as `how` says. With audits it is the
    network solved as `REFERENCE` says, and `how` is a short cut.

    Args:
        model: The classifier; see `label_copies`.
        image: The image, in [-1, 1].
        sigma: Standard deviation of the noise; the model should be trained with it.
        trials: Noisy copies whose votes count.
        selection: Others, which choose the class.
        how: How a copy is solved.
        audits: Copies that are solved as `REFERENCE` says as well; 0 is without audit.
        bound: The bound with an audit: "audited" holds for any dependence among labels.
        alpha: Probability that the certificate is wrong, at most.
        seed: Of noise and audit.
        index: Of the image; every image has noise of its own.

    Raises:
        InputError: If labels need an audit and there is none, or a number is out of range.
    """
    if how.needs_audit and audits < 1:
        raise InputError(
            f"expected audits above 0 for start {how.start!r}, got {audits}; such labels know the "
            "image, so counting them certifies nothing"
        )
    if sigma <= 0 or trials < 1 or selection < 1:
        raise InputError(
            f"expected sigma, trials and selection above 0, got {sigma}, {trials} and {selection}"
        )
    noise, _ = draw(step_seed(seed, index), range(selection + trials), tuple(image.shape))
    noise = sigma * noise.to(image.device)
    found = label_copies(model, image, noise, how)
    label = int(found.labels[:selection].mode().values)
    labels, spent = found.labels[selection:], int(found.evaluations.sum()) + found.once
    checked = None
    if audits:
        extra: list[int] = []

        def reference(chosen: Tensor) -> Tensor:
            again = label_copies(model, image, noise[selection:][chosen])
            extra.append(int(again.evaluations.sum()))
            return again.labels

        generator = torch.Generator().manual_seed(step_seed(seed, index, 1))
        checked = audit(labels, label, audits, reference, generator, bound)
        spent += sum(extra)
    p = bounded(int((labels == label).sum()), trials, alpha, checked, bound)
    radius = certified_radius(p, sigma)
    return Certificate(label if radius > 0 else None, radius, p, spent)
