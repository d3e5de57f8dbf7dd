"""Gradients of a solve: three routes, one answer, in float64."""

import pytest
import torch
from torch import Tensor, nn

from get.equilibrium import (
    Anderson,
    Broyden,
    Gradient,
    Implicit,
    Outcome,
    Phantom,
    Picard,
    Select,
    Solution,
    Unrolled,
    fixed_point,
)

from .problems import contraction, seeded, tanh_layer

EXACT = [
    Unrolled(),
    Unrolled(checkpoint=True),
    Implicit(tol=1e-13, max_steps=400, solver=Picard()),
    Implicit(tol=1e-13, max_steps=400, solver=Anderson()),
    Implicit(tol=1e-13, max_steps=400, solver=Broyden()),
]


def solve(
    gradient: Gradient,
    x: Tensor,
    w: Tensor,
    *,
    max_steps: int = 400,
    tol: float = 1e-14,
    select: Select = "last",
) -> Solution:
    return fixed_point(
        lambda z, x: tanh_layer(z, x, w),
        torch.zeros_like(x),
        inputs=(x,),
        gradient=gradient,
        max_steps=max_steps,
        tol=tol,
        select=select,
    )


def gradients(gradient: Gradient, scale: float = 1.0) -> list[Tensor]:
    """Return the gradients of a cubic loss with respect to injection and closed-over weights."""
    w = contraction(6, 0.8).requires_grad_()
    x = torch.randn(3, 6, generator=seeded(1)).double().requires_grad_()
    loss = scale * (solve(gradient, x, w).z ** 3).sum()
    return list(torch.autograd.grad(loss, (x, w)))


def dense() -> list[Tensor]:
    """Return the same gradients from explicit Jacobians and (I - J)^-1."""
    w, x = contraction(6, 0.8), torch.randn(3, 6, generator=seeded(1)).double()
    z = solve(Unrolled(), x, w).z
    slope = 1 - tanh_layer(z, x, w) ** 2
    by_x, by_w = torch.zeros_like(x), torch.zeros_like(w)
    for i in range(3):
        jacobian = slope[i][:, None] * w
        v = torch.linalg.solve(torch.eye(6).double() - jacobian.T, 3 * z[i] ** 2)
        by_x[i] = slope[i] * v
        by_w += (slope[i] * v)[:, None] * z[i]
    return [by_x, by_w]


@pytest.mark.parametrize("gradient", EXACT, ids=str)
def test_exact_gradients_equal_the_dense_formula(gradient):
    torch.testing.assert_close(gradients(gradient), dense(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gradient", EXACT, ids=str)
def test_exact_gradients_pass_gradcheck(gradient):
    w = contraction(3, 0.5).requires_grad_()
    x = torch.randn(2, 3, generator=seeded(1)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: solve(gradient, x, w).z, (x, w))


def test_a_phantom_gradient_is_the_truncated_neumann_series_and_its_error_decays():
    rate, damping = 0.5, 0.5
    w = torch.tensor(rate).double().requires_grad_()

    def slope(steps: int) -> float:
        z = fixed_point(
            lambda z: w * z + 1,
            torch.zeros(1, 1).double(),
            gradient=Phantom(steps=steps, damping=damping),
            max_steps=200,
            tol=1e-15,
        ).z
        return torch.autograd.grad(z.sum(), w)[0].item()

    for steps in (1, 2, 5):
        series = sum(damping * (1 - damping + damping * rate) ** i for i in range(steps))
        assert slope(steps) == pytest.approx(series * 2, rel=1e-9)  # z* = 1 / (1 - rate) = 2
    errors = [abs(slope(steps) - 4) for steps in (4, 8, 16)]  # dz*/dw = 1 / (1 - rate)^2
    assert errors[0] / errors[1] == pytest.approx(0.75**-4, rel=1e-3)
    assert errors[1] / errors[2] == pytest.approx(0.75**-8, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()], ids=str)
def test_the_scale_of_the_loss_scales_the_implicit_gradient_and_nothing_else(scale, solver):
    mode = Implicit(solver=solver, tol=1e-10, max_steps=200)
    scaled = [g / scale for g in gradients(mode, scale)]
    torch.testing.assert_close(scaled, gradients(mode), rtol=1e-8, atol=1e-10)


def test_the_backward_solve_reports_what_became_of_it():
    w = contraction(6, 0.8).requires_grad_()
    x = torch.randn(3, 6, generator=seeded(1)).double()
    for steps, outcome in ((200, Outcome.CONVERGED), (2, Outcome.MAX_STEPS)):
        solution = solve(Implicit(max_steps=steps, tol=1e-10), x, w)
        assert solution.adjoint.result is None
        solution.z.sum().backward()
        assert solution.adjoint.result is not None
        assert solution.adjoint.result.outcome.tolist() == [outcome] * 3


def test_two_implicit_solves_in_one_graph_do_not_disturb_each_other():
    w = contraction(6, 0.8).requires_grad_()
    x = torch.randn(3, 6, generator=seeded(1)).double().requires_grad_()

    def twice(mode):
        first = solve(mode, x, w).z
        second = solve(mode, x + first, w).z
        return torch.autograd.grad((first * second).sum(), (x, w))

    torch.testing.assert_close(twice(EXACT[2]), twice(Unrolled()), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gradient", [EXACT[2], Phantom()], ids=str)
def test_without_gradients_the_measured_state_is_returned(gradient):
    x, w = torch.ones(2, 6).double(), contraction(6, 0.8).requires_grad_()
    with torch.no_grad():
        solution = solve(gradient, x, w, select="best", tol=1e-6)
    image = tanh_layer(solution.z, x, w)
    true = (image - solution.z).norm(dim=1) / image.norm(dim=1)
    torch.testing.assert_close(solution.residual, true)
    assert not solution.z.requires_grad


def test_training_and_evaluation_mode_differentiate_alike():
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(contraction(6, 0.8))

        def forward(self, z, x):
            return tanh_layer(z, x, self.w)

    module, x = Map(), torch.ones(2, 6).double()
    by_mode = []
    for mode in (module.train(), module.eval()):
        z = fixed_point(mode, x, inputs=(x,), gradient=Implicit(), max_steps=99, tol=1e-9).z
        by_mode.append(torch.autograd.grad(z.sum(), module.w)[0])
    assert torch.equal(*by_mode)


def test_differentiating_an_implicit_gradient_again_is_refused():
    w = contraction(6, 0.8).requires_grad_()
    z = solve(Implicit(), torch.ones(2, 6).double(), w).z
    with pytest.raises(
        RuntimeError, match="expected an Implicit gradient to be differentiated once"
    ):
        torch.autograd.grad(z.sum(), w, create_graph=True)


@pytest.mark.parametrize("gradient", [EXACT[2], Phantom(steps=40, damping=1.0)], ids=str)
def test_under_autocast_the_gradient_is_that_of_the_map_in_lower_precision(gradient):
    x, w = torch.ones(2, 6), contraction(6, 0.8).float().requires_grad_()

    def lower(z: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tanh_layer(z, x, w).float()

    def run(f, scale: float = 1.0) -> Tensor:
        z = fixed_point(f, torch.zeros(2, 6), inputs=(x,), gradient=gradient, max_steps=60).z
        return torch.autograd.grad(scale * z.sum(), w)[0] / scale

    exact = run(lambda z, x: tanh_layer(z, x, w))
    assert not torch.equal(run(lower), exact)
    torch.testing.assert_close(run(lower), exact, rtol=0.05, atol=0.02)
    torch.testing.assert_close(run(lower, 2.0**-20), run(lower), rtol=1e-3, atol=1e-5)
    # The mode of the forward pass holds in the vector-Jacobian products, whatever surrounds them.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = fixed_point(lower, torch.zeros(2, 6), inputs=(x,), gradient=gradient, max_steps=60).z
    torch.testing.assert_close(torch.autograd.grad(z.sum(), w)[0], run(lower))


def test_unrolled_gradients_can_be_differentiated_again():
    x = torch.ones(1, 2).double()

    def by_w(w):
        z = solve(Unrolled(), x, w, max_steps=30, tol=0.0).z
        return torch.autograd.grad(z.sum(), w, create_graph=True)[0]

    assert torch.autograd.gradcheck(by_w, (contraction(2, 0.5).requires_grad_(),))


@pytest.mark.parametrize("gradient", [*EXACT, Phantom()], ids=str)
def test_only_implicit_gradients_keep_memory_flat_in_the_iterations(gradient):
    def kept(steps: int) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            w = contraction(6, 0.8).requires_grad_()
            solve(gradient, torch.ones(2, 6).double(), w, max_steps=steps, tol=0.0)
        return total

    assert (kept(40) > 3 * kept(4)) == isinstance(gradient, Unrolled)
