"""Parity with torchdeq 0.1.0, and one case where it is wrong; skipped if it is not installed."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from get.equilibrium import Anderson, Broyden, Implicit, Phantom, Picard, fixed_point

from .problems import seeded


@pytest.fixture(scope="module")
def torchdeq() -> ModuleType:
    return pytest.importorskip("torchdeq")


PAIRS = [
    (Picard(), "fixed_point_iter"),
    (Anderson(ridge=1e-10, restart=False), "anderson"),
    (Broyden(), "broyden"),
]


def problem() -> tuple[Tensor, Tensor]:
    """Return the weight and the injection of z = tanh(z w^T + x), a contraction."""
    w = torch.randn(8, 8, generator=seeded(0)).double()
    x = torch.randn(4, 8, generator=seeded(1)).double()
    return (0.7 * w / torch.linalg.matrix_norm(w, 2)).requires_grad_(), x.requires_grad_()


def theirs(torchdeq: ModuleType, solver: str, **flags) -> tuple[Tensor, tuple[Tensor, ...]]:
    w, x = problem()
    deq = torchdeq.get_deq(
        **{"f_solver": solver, "f_max_iter": 100, "f_tol": 1e-12, "f_stop_mode": "rel"},
        **{"b_solver": solver, "b_max_iter": 100, "b_tol": 1e-12, "b_stop_mode": "rel"},
        **flags,
    )
    z = deq(lambda z: torch.tanh(z @ w.T + x), torch.zeros_like(x))[0][-1]
    return z, torch.autograd.grad(z.square().sum(), (w, x))


@pytest.mark.parametrize(("solver", "name"), PAIRS, ids=lambda p: p if isinstance(p, str) else "")
def test_solutions_and_implicit_gradients_agree_with_torchdeq(torchdeq, solver, name):
    w, x = problem()
    z = fixed_point(
        lambda z, x: torch.tanh(z @ w.T + x),
        torch.zeros_like(x),
        inputs=(x,),
        solver=solver,
        gradient=Implicit(solver=solver, max_steps=100, tol=1e-12),
        max_steps=100,
        tol=1e-12,
    ).z
    expected = theirs(torchdeq, name, ift=True)
    torch.testing.assert_close(z, expected[0], rtol=1e-9, atol=1e-10)
    gradients = torch.autograd.grad(z.square().sum(), (w, x))
    torch.testing.assert_close(gradients, expected[1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("steps", "damping"), [(1, 1.0), (5, 0.5), (8, 0.7)])
def test_phantom_gradients_agree_with_torchdeq(torchdeq, steps, damping):
    w, x = problem()
    z = fixed_point(
        lambda z, x: torch.tanh(z @ w.T + x),
        torch.zeros_like(x),
        inputs=(x,),
        gradient=Phantom(steps=steps, damping=damping),
        max_steps=100,
        tol=1e-12,
    ).z
    expected = theirs(torchdeq, "fixed_point_iter", grad=steps, tau=damping)
    torch.testing.assert_close(z, expected[0], rtol=1e-9, atol=1e-10)
    gradients = torch.autograd.grad(z.square().sum(), (w, x))
    torch.testing.assert_close(gradients, expected[1], rtol=1e-8, atol=1e-9)


def test_broyden_walks_the_same_path_as_torchdeq_step_by_step(torchdeq):
    w, x = (t.detach() for t in problem())
    ours, others = [], []

    def f(z: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(z.detach().clone())
        return torch.tanh(z @ w.T + x)

    z0 = torch.zeros_like(x)
    fixed_point(lambda z: f(z, ours), z0, solver=Broyden(), max_steps=9)
    solve = torchdeq.solver.get_solver("broyden")
    solve(lambda z: f(z, others), z0, max_iter=8, tol=0.0, stop_mode="rel")
    torch.testing.assert_close(torch.stack(ours), torch.stack(others), rtol=1e-7, atol=1e-9)


def test_the_gradient_asked_for_is_the_gradient_given_where_torchdeq_gives_another(torchdeq):
    # f = z / 2 + w: dz/dw is 2. torchdeq's default is the one-step gradient, 1.
    w = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    deq = torchdeq.get_deq(f_tol=1e-12)
    (wrong,) = torch.autograd.grad(deq(lambda z: z / 2 + w, torch.zeros(1, 1).double())[0][-1], w)
    z = fixed_point(
        lambda z: z / 2 + w, torch.zeros(1, 1).double(), gradient=Implicit(), max_steps=99, tol=1e-9
    ).z
    (right,) = torch.autograd.grad(z, w)
    assert wrong == 1
    torch.testing.assert_close(right, torch.full_like(right, 2.0), rtol=1e-5, atol=0)
