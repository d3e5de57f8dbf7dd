"""Training objective: a loss on every iterate, weighted geometrically towards the last.

`IterateLoss` is the module that DDP wraps: calling another method of an unwrapped model would
leave gradients unsynchronised, silently.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from get.equilibrium import Adjoint, jacobian_penalty
from get.errors import InputError
from get.frechet import FrechetLoss
from get.models import Equilibrium, Rollout, Student, Trajectory

HUBER = 0.00054  # times the root of an image's numbers (Sec. 3.3, arXiv:2310.14189)
PERCEPTUAL_SIZE = 224  # perceptual networks look at images of this side, as in locuslab/get


class Losses(NamedTuple):
    """What one training call returns.

    Attributes:
        iterates: Mean loss of each iterate, first to last.
        residual: Mean relative residual of the last state; None if the model does not iterate.
        penalty: Mean Jacobian penalty |df/dz|_F^2 / d at the last state; None if not asked for.
        adjoint: The backward solve of an implicit gradient; None without one.
        frechet: Frechet distance of the last images; None without, or if moments are collected.
    """

    iterates: Float[Tensor, " iterates"]
    residual: Float[Tensor, ""] | None
    penalty: Float[Tensor, ""] | None = None
    adjoint: Adjoint | None = None
    frechet: Float[Tensor, ""] | None = None

    @property
    def adjoint_failed(self) -> Float[Tensor, ""] | None:
        """Share of samples with a wrong implicit gradient in the last backward pass, if any."""
        return None if self.adjoint is None else self.adjoint.failed

    def total(
        self, decay: float, penalty_weight: float = 0.0, frechet_weight: float = 0.0
    ) -> Float[Tensor, ""]:
        """Return the training loss: iterates by `geometric_weights`, and what else there is."""
        weights = geometric_weights(len(self.iterates), decay, self.iterates.device)
        loss = self.iterates @ weights.to(self.iterates.dtype)
        if self.penalty is not None:
            loss = loss + penalty_weight * self.penalty
        if self.frechet is not None:
            loss = loss + frechet_weight * self.frechet
        return loss


class IterateLoss(nn.Module):
    """A model and its loss as one module whose forward returns per-iterate losses."""

    def __init__(
        self,
        model: Student,
        loss: str = "l1",
        *,
        iterations: int | None = None,
        equilibrium: Equilibrium | None = None,
        frechet: FrechetLoss | None = None,
    ) -> None:
        """Wrap `model`.

        Args:
            model: The model to train.
            loss: See `image_loss`.
            iterations: Iterates with a loss each; None takes the model's number.
            equilibrium: How the iteration goes on to its converged state, which gets the last
                loss; None ends with the last iterate.
            frechet: Compares the last images as a distribution; None does not.

        Raises:
            InputError: If a model that does not iterate is given iterations or an equilibrium, or
                a perceptual loss lacks its package.
        """
        super().__init__()
        if model.iterations is None and (equilibrium, iterations) != (None, None):
            kind = type(model).__name__
            raise InputError(
                f"expected a GET for an equilibrium, got a {kind}; it does not iterate"
            )
        self.model = model
        self.loss = image_loss(loss)
        self.iterations, self.equilibrium, self.frechet = iterations, equilibrium, frechet

    def forward(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None,
        target: Float[Tensor, "batch channels side side"],
        z0: Float[Tensor, "batch tokens width"] | None = None,
        penalty_draws: int = 0,
        generator: torch.Generator | None = None,
        rollout: Rollout | None = None,
        frechet_weight: float | None = None,
    ) -> Losses:
        """Return the loss of every iterate against the teacher's image.

        Args:
            noise: Unit normal noise.
            labels: Class indices, or None for an unconditional model.
            target: The teacher's images of that noise, in [-1, 1].
            z0: Start of the iteration, for a GET whose `z0` policy is "normal".
            penalty_draws: Random vectors of the Jacobian penalty; 0 does not compute it.
            generator: Source of those vectors.
            rollout: Samples that begin later in their iteration.
            frechet_weight: Of the Frechet distance; 0 only collects moments, None does nothing.
        """
        path, losses = self._follow(noise, labels, target, z0, rollout)
        penalty = None
        if penalty_draws and path.map is not None:
            with sdpa_kernel(SDPBackend.MATH):  # the one attention that differentiates twice
                penalty = jacobian_penalty(
                    path.map,
                    path.states[-1],
                    inputs=path.inputs,
                    draws=penalty_draws,
                    generator=generator,
                ).mean()
        frechet = None
        if self.frechet is not None and frechet_weight is not None:
            if frechet_weight:
                frechet = self.frechet(path.images[-1])
            else:
                self.frechet.collect(path.images[-1].detach())
        return Losses(losses, path.residual, penalty, path.adjoint, frechet)

    def _follow(
        self,
        noise: Tensor,
        labels: Tensor | None,
        target: Tensor,
        z0: Tensor | None,
        rollout: Rollout | None,
    ) -> tuple[Trajectory, Tensor]:
        """Return the trajectory and the loss of every image on it."""
        path = self.model.trajectory(
            noise,
            labels,
            iterations=self.iterations,
            z0=z0,
            equilibrium=self.equilibrium,
            rollout=rollout,
        )
        return path, torch.stack([self.loss(image, target) for image in path.images])

    def compile_path(self, mode: str | None = None) -> None:
        """Compile model, iterations and losses as one graph; weights keep their names.

        There is a graph for every length of a rollout. An `equilibrium` cannot be compiled so: its
        solve stops where the samples do.

        Args:
            mode: As for `torch.compile`; "reduce-overhead" records CUDA graphs.
        """
        whole = not isinstance(self.loss, nn.Module)  # networks of other packages may break it
        self._follow = torch.compile(self._follow, fullgraph=whole, mode=mode)


def image_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean loss of a batch of images against the teacher's.

    Args:
        name: A key of `LOSSES`.

    Raises:
        InputError: If there is no such loss, or its package is missing.
    """
    if name not in LOSSES:
        raise InputError(f"expected a loss among {', '.join(LOSSES)}, got {name}")
    return LOSSES[name]()


def _l1(made: Tensor, target: Tensor) -> Tensor:
    return (made - target).abs().mean()


def _l2(made: Tensor, target: Tensor) -> Tensor:
    return (made - target).square().mean()


def _pseudo_huber(made: Tensor, target: Tensor) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of an image's difference d: no image counts much more than another."""
    root = target[0].numel() ** 0.5
    c = HUBER * root
    squares = (made - target).flatten(1).square().sum(1)
    return ((squares + c**2).sqrt() - c).mean() / root


class _Perceptual(nn.Module):
    """LPIPS or DISTS of images in [-1, 1], grey or colour, made large enough for the networks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import piq
        except ImportError as error:
            raise InputError(
                f"expected the package piq for loss {name}, got none; pip install piq"
            ) from error
        try:
            self.network = {"lpips": piq.LPIPS, "dists": piq.DISTS}[name]().requires_grad_(False)
        except OSError as error:
            raise InputError(
                f"expected to download the weights of {name} as piq does, got: {error}; put them "
                "into the folder of torch.hub, or choose another loss"
            ) from error

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        large = [
            F.interpolate(x.expand(-1, 3, -1, -1), (PERCEPTUAL_SIZE,) * 2, mode="bilinear")
            for x in (made, target)
        ]
        return self.network(*((x / 2 + 0.5).clamp(0, 1) for x in large))


def geometric_weights(
    count: int, decay: float, device: torch.device | None = None
) -> Float[Tensor, " iterates"]:
    """Return decay^(count - k) for k = 1 .. count, so the last weight is 1 (GET uses 0.8)."""
    return decay ** torch.arange(count - 1, -1, -1, dtype=torch.float32, device=device)


LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "l1": lambda: _l1,
    "l2": lambda: _l2,
    "pseudo_huber": lambda: _pseudo_huber,
    "lpips": lambda: _Perceptual("lpips"),
    "dists": lambda: _Perceptual("dists"),
}
"""What makes each loss, by the name that settings use: mean absolute and squared difference, the
pseudo-Huber loss, and two that compare features of networks which the package piq downloads."""
NETWORKS = ("lpips", "dists")  # losses that run a network of their own
