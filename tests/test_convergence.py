"""When a sample has converged: absolute and relative tolerance, drift, half precision."""

from typing import Any

import pytest
import torch
from torch import Tensor

from get.equilibrium import Anderson, Broyden, Outcome, Picard, Reversible, Solver, fixed_point

from .problems import contraction, seeded

SOLVERS = [Picard(), Anderson(), Broyden()]


def attracted(rho: float, batch: int = 64, dimension: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Return a symmetric matrix with eigenvalues up to rho, shifts, and their fixed points."""
    q, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=seeded(0)).double())
    a = q @ torch.linspace(-rho, rho, dimension).double().diag() @ q.T
    b = torch.randn(batch, dimension, generator=seeded(1)).double()
    return a, b, torch.linalg.solve(torch.eye(dimension).double() - a, b.T).T


# ---------------------------------------------------------------- which state is returned


def test_best_is_not_a_state_that_explodes():
    # The relative residual of 1.2 z + 1 falls from 1 to 1/6 while z grows without bound.
    solution = fixed_point(lambda z: 1.2 * z + 1, torch.zeros(1, 2).double(), max_steps=100)
    assert solution.z.tolist() == [[0, 0]]


def test_what_has_converged_is_returned_though_an_earlier_state_had_a_shorter_step():
    # From 0 a step of 1e-3; from there a step of 1e6, to states whose steps halve.
    def f(z: Tensor) -> Tensor:
        far = 1e6 + 0.5 * (z - 1e6)
        return torch.where(z == 0, 1e-3, torch.where(z < 1, 1e6 + 1e4, far))

    solution = fixed_point(f, torch.zeros(1, 1).double(), max_steps=50, tol=1e-6)
    assert solution.outcome.tolist() == [Outcome.CONVERGED]
    torch.testing.assert_close(solution.z, torch.full((1, 1), 1e6).double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_an_equilibrium_at_zero_converges_with_an_absolute_tolerance(solver):
    z0 = torch.ones(2, 3).double()
    solution = fixed_point(lambda z: z / 2, z0, solver=solver, max_steps=60, tol=1e-3, atol=1e-9)
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * 2
    assert solution.z.abs().max() < 1e-8
    # Without one the residual stays at 1, but the state found is returned.
    solution = fixed_point(lambda z: z / 2, z0, max_steps=60, tol=1e-3)
    assert solution.outcome.tolist() == [Outcome.MAX_STEPS] * 2
    assert solution.z.abs().max() < 1e-15


def test_both_tolerances_add_up():
    def evaluations(tol: float = 0.0, atol: float = 0.0) -> int:
        z0 = torch.zeros(1, 1).double()
        f = lambda z: z / 2 + 8  # noqa: E731
        return int(fixed_point(f, z0, max_steps=99, tol=tol, atol=atol).evaluations)

    # Step k goes from 16 (1 - 2^(1-k)) on by 2^(4-k).
    assert evaluations(atol=0.25) == 6
    assert evaluations(atol=0.125, tol=0.0) == 7
    assert evaluations(atol=0.125, tol=0.125 / 15.7) == 6  # |f(z)| is 15.75 in step 6
    assert evaluations(atol=0.125, tol=0.125 / 15.8) == 7


# ---------------------------------------------------------------- drift


@pytest.mark.parametrize(
    ("rho", "tol", "solver"),
    [
        (0.99, 1e-2, Anderson()),
        (0.99, 1e-3, Anderson()),
        (0.9, 0.1, Picard()),
        (0.99, 1e-2, Broyden()),
    ],
    ids=str,
)
def test_a_sample_that_moves_on_below_the_tolerance_goes_on_until_its_steps_have_become_shorter(
    rho, tol, solver
):
    a, b, _ = attracted(rho)
    solution = fixed_point(
        lambda z, b: z @ a + b, b * 0, inputs=(b,), solver=solver, max_steps=100, tol=tol
    )
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * len(b)
    assert (solution.residual <= tol).all()


def turn(z: Tensor) -> Tensor:
    """Turn vectors of two numbers by a thousandth of a radian."""
    angle = torch.tensor(1e-3).double()
    c, s = angle.cos(), angle.sin()
    return z @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])


WITHOUT_END: dict[str, tuple[Any, list[float], float]] = {
    "z + 1 from 1000": (lambda z: z + 1, [1000.0, 1000.0], 1e-3),
    "z + 1 from a million": (lambda z: z + 1, [1e6, 1e6], 1e-3),
    "z + 1 from -2000": (lambda z: z + 1, [-2000.0, -2000.0], 1e-3),
    "sideways": (lambda z: z + torch.tensor([0.0, 1.0]).double(), [1000.0, 0.0], 1.1e-3),
    "logarithm": (lambda z: z + (-z).exp(), [0.0, 0.0], 1e-3),
    "root": (lambda z: z + 1 / (1 + z), [1.0, 1.0], 1e-3),
    "circle": (turn, [1.0, 0.0], 1e-2),
}


@pytest.mark.parametrize("name", WITHOUT_END)
def test_a_map_without_a_limit_never_converges(name):
    f, z0, tol = WITHOUT_END[name]
    solution = fixed_point(f, torch.tensor([z0]).double(), max_steps=900, tol=tol)
    assert solution.outcome.tolist() == [Outcome.DRIFT]
    assert solution.evaluations.tolist() == [900]


@pytest.mark.parametrize("max_steps", [2, 3, 4, 10])
def test_two_evaluations_are_enough_to_see_a_drift(max_steps):
    z0 = torch.full((1, 4), 1000.0)
    solution = fixed_point(lambda z: z + 1, z0, max_steps=max_steps, tol=1e-3)
    assert solution.outcome.tolist() == [Outcome.DRIFT]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_start_near_the_answer_costs_two_evaluations(solver):
    a, b, answer = attracted(0.9)
    solution = fixed_point(
        lambda z, b: z @ a + b,
        answer * (1 + 1e-5 * torch.randn(answer.shape, generator=seeded(2)).double()),
        inputs=(b,),
        solver=solver,
        max_steps=50,
        tol=1e-4,
    )
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * len(b)
    assert solution.evaluations.tolist() == [2] * len(b)


def test_a_drifting_sample_leaves_its_batch_mates_alone():
    rates, shifts = torch.tensor([1.0, 0.5]).double(), torch.tensor([1.0, 1.0]).double()

    def f(z: Tensor, rate: Tensor, shift: Tensor) -> Tensor:
        return rate[:, None] * z + shift[:, None]

    for compact in (False, True):
        solution = fixed_point(
            f,
            torch.tensor([[1e4], [0.0]]).double(),
            inputs=(rates, shifts),
            max_steps=60,
            tol=1e-3,
            compact=compact,
        )
        assert solution.outcome.tolist() == [Outcome.DRIFT, Outcome.CONVERGED]
        assert solution.evaluations.tolist() == [60, 10]


# ---------------------------------------------------------------- half precision


def test_a_norm_beyond_float16_is_no_convergence():
    # |f(z)| is about 1e5 at once; as a float16 it is inf, and any residual divided by it is 0.
    z0 = torch.zeros(1, 40_000, dtype=torch.float16)
    solution = fixed_point(lambda z: 0.5 * z + 300, z0, max_steps=40, tol=1e-3)
    assert solution.outcome.tolist() == [Outcome.CONVERGED]
    torch.testing.assert_close(solution.z, torch.full_like(z0, 600), rtol=2e-3, atol=0)


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_a_norm_beyond_float32_is_not_finite(tol):
    z0 = torch.zeros(1, 8)
    solution = fixed_point(lambda z: 0.5 * z + 1e38, z0, max_steps=9, tol=tol)
    assert solution.outcome.tolist() == [Outcome.NON_FINITE]
    assert not (solution.residual < 1).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", [*SOLVERS, Reversible()], ids=str)
def test_every_solver_works_in_half_precision(solver: Solver, dtype: torch.dtype):
    w = contraction(16, 0.8).to(dtype)
    x = torch.randn(4, 16, generator=seeded(1)).to(dtype)

    def f(z: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(z @ w.T + x)

    exact = fixed_point(
        lambda z: f(z, x.double(), w.double()), x.double(), max_steps=200, tol=1e-12
    ).z
    tol = 4 * torch.finfo(dtype).eps
    solution = fixed_point(lambda z: f(z, x, w), x, solver=solver, max_steps=60, tol=tol)
    assert solution.z.dtype == dtype
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * 4
    torch.testing.assert_close(solution.z.double(), exact, rtol=0, atol=5 * tol)


@pytest.mark.parametrize("solver", [*SOLVERS, Reversible()], ids=str)
def test_autocast_reaches_the_map_and_not_the_solver(solver):
    w, x = contraction(16, 0.8).float(), torch.randn(4, 16, generator=seeded(1))

    def f(z: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.tanh(z @ w.T + x)

    def solve() -> Tensor:
        return fixed_point(f, x, inputs=(x,), solver=solver, max_steps=12).z

    with torch.autocast("cpu", torch.bfloat16):
        inside = solve()
    assert torch.equal(inside, solve())
