"""Equilibrium networks of infinite width: the Gaussian process they become, and finite draws of it.

The network is h = phi(W h + U x), f(x) = v . h, with independent normal weights of variance
s_w^2 / width, s_u^2 / inputs and s_v^2 / width (arXiv:2310.10767). At infinite width f is a
Gaussian process. Its kernel is the limit of a recursion over the depth, which `WideNetwork.kernel`
computes. `WideNetwork.draw` makes networks of finite width and solves them with
`get.equilibrium.fixed_point`. `activations.py` has the integrals, `gaussian_process.py` regression.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.analysis.activations import RELU, Activation, Kernel
from get.equilibrium import Outcome, fixed_point
from get.errors import InputError

Points = Float[Tensor, "points inputs"]


@dataclass(frozen=True)
class Drawn:
    """Finite networks, each with weights of its own.

    Attributes:
        hidden: The states h of every network at every point.
        evaluations: Evaluations of the layer each network needed.
        outcome: `get.equilibrium.Outcome` of each network; MAX_STEPS for one of finite depth.
        layers: h after 1, 2, ... layers, if they were kept, until all networks had converged.
    """

    hidden: Float[Tensor, "draws points width"]
    evaluations: Int[Tensor, " draws"]
    outcome: Int[Tensor, " draws"]
    layers: tuple[Float[Tensor, "draws points width"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class WideNetwork:
    """A distribution of networks, of any width and depth.

    Attributes:
        activation: phi.
        weight_std: s_w. Below 1 / (2 L), L the Lipschitz constant of phi, the layer of a wide
            network contracts almost surely, because |W| tends to 2 s_w.
        input_std: s_u.
        output_std: s_v.
        injected: The input enters every layer. If not, only the first: an ordinary network, which
            has no equilibrium that depends on x.
    """

    activation: Activation = RELU
    weight_std: float = 0.4
    input_std: float = 1.0
    output_std: float = 1.0
    injected: bool = True

    def __post_init__(self) -> None:
        """Refuse deviations that are not positive."""
        if min(self.weight_std, self.input_std, self.output_std) <= 0:
            raise InputError(f"expected positive standard deviations, got {self}")

    @property
    def contracts(self) -> bool:
        """Say whether wide layers are contractions almost surely: s_w < 1 / (2 L)."""
        return 2 * self.weight_std * self.activation.lipschitz < 1

    def kernel(
        self, inputs: Points, depth: int | None = None, *, tol: float = 1e-13, max_steps: int = 2000
    ) -> Float[Tensor, "points points"]:
        """Return the covariance of f at infinite width.

        S^1 = s_u^2 <x, x'> / inputs; S^{l+1} = s_w^2 E[phi(a) phi(b)] + S^1 (without S^1 in an
        ordinary network), (a, b) normal with covariance S^l; K = s_v^2 E[phi(a) phi(b)] under the
        last S. Tied and untied weights have the same kernel.

        Args:
            inputs: The points x; use float64.
            depth: Layers; None takes the limit of infinitely many.
            tol: Relative change of S at which the limit is reached.
            max_steps: Most steps towards the limit.

        Raises:
            InputError: If there is no limit within `max_steps`, or the depth is below 1.
        """
        return self.output_std**2 * self.activation.moment(
            self._preactivations(inputs, depth, tol, max_steps)
        )

    def _preactivations(
        self, inputs: Points, depth: int | None, tol: float, max_steps: int
    ) -> Float[Tensor, "points points"]:
        """Return S^depth, or its limit."""
        check_inputs(inputs)
        first = self.input_std**2 * inputs @ inputs.T / inputs.shape[1]
        if depth is not None:
            if depth < 1:
                raise InputError(f"expected depth of at least 1, got {depth}; None is the limit")
            kernel = first
            for _ in range(depth - 1):
                kernel = self._deeper(kernel, first)
            return kernel
        solution = fixed_point(
            self._deeper,
            first[None],
            inputs=(first[None],),
            max_steps=max_steps,
            tol=tol,
            atol=torch.finfo(inputs.dtype).tiny,
        )
        if int(solution.outcome) != Outcome.CONVERGED:
            raise InputError(
                f"expected a weight_std at which the kernel of {self.activation.name} has a limit, "
                f"got {self.weight_std} (residual {float(solution.residual):.1e} after "
                f"{int(solution.evaluations)} steps); take a smaller one, or a finite depth"
            )
        return solution.z[0]

    def _deeper(self, kernel: Kernel, first: Kernel) -> Kernel:
        """Return S^{l+1} of S^l."""
        hidden = self.weight_std**2 * self.activation.moment(kernel)
        return hidden + first if self.injected else hidden

    def draw(
        self,
        inputs: Points,
        width: int,
        draws: int,
        generator: torch.Generator,
        *,
        depth: int | None = None,
        tied: bool = True,
        start: Float[Tensor, "draws points width"] | None = None,
        tol: float = 1e-6,
        atol: float = 1e-9,
        max_steps: int = 500,
        keep_layers: bool = False,
    ) -> Drawn:
        """Draw networks of finite width and find their states at these points.

        One network is one sample of the solver, so its points stop together.

        Args:
            inputs: The points; their dtype is that of the networks.
            width: Components of h.
            draws: Networks.
            generator: Draws W and U.
            depth: Layers, counted from h = phi(U x); None solves for the equilibrium.
            tied: All layers have one W. If not, each has its own; needs a depth.
            start: Where the search for the equilibrium begins; None is zero.
            tol: Relative residual of an equilibrium.
            atol: Absolute residual, which an equilibrium at zero needs.
            max_steps: Most evaluations of the layer.
            keep_layers: Also return h after every layer; for tied and injected layers only.

        Raises:
            InputError: If a number is out of range or arguments exclude each other.
        """
        check_inputs(inputs)
        if min(width, draws, 1 if depth is None else depth) < 1:
            raise InputError(
                "expected width, draws and depth of at least 1, got "
                f"width {width}, draws {draws}, depth {depth}"
            )
        if depth is None and not (tied and self.injected):
            raise InputError(
                "expected a depth for weights that are not tied or inputs that are not injected, "
                "got None; only a tied and injected layer has an equilibrium"
            )
        normal = partial(torch.randn, generator=generator, dtype=inputs.dtype)
        first = normal(draws, inputs.shape[1], width) * (self.input_std / inputs.shape[1] ** 0.5)
        x = inputs @ first

        def weights() -> Tensor:
            return normal(draws, width, width) * (self.weight_std / width**0.5)

        def layer(h: Tensor, x: Tensor, w: Tensor) -> Tensor:
            return self.activation.phi(torch.bmm(h, w).add_(x))

        if depth is not None and not (tied and self.injected):
            h, w = self.activation.phi(x), weights()
            for number in range(1, depth):
                w = w if tied or number == 1 else weights()
                h = layer(h, x if self.injected else torch.zeros_like(x), w)
            steps = torch.full((draws,), depth)
            return Drawn(h, steps, torch.full_like(steps, int(Outcome.MAX_STEPS)))
        solution = fixed_point(
            layer,
            torch.zeros_like(x) if start is None else start,
            inputs=(x, weights()),
            max_steps=max_steps if depth is None else depth,
            tol=tol if depth is None else 0.0,
            atol=atol if depth is None else 0.0,
            select="best" if depth is None else "last",
            keep_iterates=keep_layers,
        )
        return Drawn(solution.z, solution.evaluations, solution.outcome, solution.iterates)


def check_inputs(inputs: Points) -> None:
    """Refuse points of which no kernel can be made."""
    if not inputs.is_floating_point() or not bool(inputs.isfinite().all()):
        raise InputError(f"expected finite floating-point inputs, got {inputs.dtype}")


def degenerate_pairs(
    inputs: Points, activation: Activation, *, tol: float = 1e-9
) -> list[tuple[int, int, str]]:
    """Return the pairs of points, and why, that make the kernel singular.

    The theorem asks for "pairwise distinct" points. That is not enough: a homogeneous phi (ReLU)
    has f(t x) = t f(x), so x and t x with t > 0 are dependent, and an odd phi (tanh, erf) has
    f(-x) = -f(x), so x and -x are. Points of one length without antipodes have neither.

    Args:
        inputs: The points.
        activation: The activation.
        tol: Directions are equal if their cosine is this close to 1.

    Returns:
        Rows i < j of each such pair: "equal", "parallel" or "opposite"; "zero" with i = j for a
        point at zero, where phi(0) = 0 makes f zero.
    """
    check_inputs(inputs)
    norms = inputs.norm(dim=1)
    unit = inputs / norms.clamp_min(torch.finfo(inputs.dtype).tiny)[:, None]
    cosine, found = unit @ unit.T, list[tuple[int, int, str]]()
    if float(activation.phi(torch.zeros(1, dtype=inputs.dtype))) == 0:
        found += [(i, i, "zero") for i in (norms == 0).nonzero().flatten().tolist()]
    rows, columns = ((cosine.abs() > 1 - tol).triu(1)).nonzero(as_tuple=True)
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        same_length = abs(float(norms[i] - norms[j])) <= tol * float(norms[i])
        if cosine[i, j] < 0:
            if activation.odd and same_length:
                found.append((i, j, "opposite"))
        elif same_length or activation.homogeneous:
            found.append((i, j, "equal" if same_length else "parallel"))
    return found
