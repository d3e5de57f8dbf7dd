"""The backward solve of `Implicit`: right where J has large eigenvalues, never wrong in silence."""

import pytest
import torch
from torch import Tensor

from get.equilibrium import Anderson, Broyden, Implicit, Outcome, Picard, Solution, fixed_point
from get.losses import IterateLoss
from get.models import Equilibrium
from pipeline.benchmarks.one_step import random_pairs
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import TrainingStep

from .problems import normal, seeded, tiny_get
from .processes import completed

RATES = torch.tensor([0.3, 0.5, 1.5, -1.4]).double()  # plain iteration leaves this fixed point
TRUTH = (1 - RATES) ** -2  # of d(sum z*)/dA, diagonal, for z* = 1 / (1 - rate)


def slopes(mode: Implicit) -> tuple[Tensor, Solution]:
    """Return d(sum z*)/dA of f(z) = z A + 1 at its fixed point, A diagonal, and the solution."""
    a = RATES.diag().requires_grad_()
    solution = fixed_point(lambda z: z @ a + 1, (1 / (1 - RATES))[None], gradient=mode, max_steps=1)
    (by_a,) = torch.autograd.grad(solution.z.sum(), a)
    return by_a.diagonal(), solution


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [
        (Implicit(), 1e-6),
        (Implicit(max_steps=12, tol=1e-2), 1e-2),
        (Implicit(solver=Anderson(restart=False), max_steps=12, tol=1e-2), 1e-2),
    ],
    ids=str,
)
def test_the_gradient_is_right_where_plain_iteration_leaves_the_fixed_point(mode, tolerance):
    found, solution = slopes(mode)
    torch.testing.assert_close(found, TRUTH, rtol=tolerance, atol=0)
    assert solution.adjoint.failed == 0


@pytest.mark.parametrize(
    "mode",
    [Implicit(solver=Picard()), Implicit(solver=Anderson(), max_steps=12, tol=1e-2)],
    ids=str,
)
def test_an_adjoint_that_was_not_found_does_not_explode_and_is_reported(mode):
    found, solution = slopes(mode)
    result = solution.adjoint.result
    assert result is not None
    assert result.outcome.tolist() == [Outcome.MAX_STEPS]
    assert solution.adjoint.failed == 1
    assert result.z.norm() <= 4 * TRUTH.norm()
    # At worst it is the incoming gradient, whose residual is |J^T g| / |g|.
    assert result.residual <= RATES.norm() / 2 + 1e-9
    assert found.abs().max() <= 4 * TRUTH.max()


def test_the_residual_of_an_adjoint_is_measured_in_units_of_the_incoming_gradient():
    _, solution = slopes(Implicit(solver=Picard(), max_steps=9))
    result = solution.adjoint.result
    assert result is not None
    v = result.z
    residual = (v * RATES + 1 - v).norm() / torch.ones(4).norm()  # g is 1
    torch.testing.assert_close(result.residual[0], residual)
    torch.testing.assert_close(
        result.trace[:, 0], (RATES ** torch.arange(1, 10)[:, None]).norm(dim=1) / 2
    )


def test_a_gradient_of_zero_is_solved_at_once():
    z0 = torch.ones(3, 2).double().requires_grad_()
    solution = fixed_point(lambda z: z0 + z / 2, z0, gradient=Implicit(), max_steps=99, tol=1e-9)
    (solution.z[:2] ** 2).sum().backward()
    result = solution.adjoint.result
    assert result is not None
    assert result.outcome.tolist() == [Outcome.CONVERGED] * 3
    assert result.evaluations[2] == 1


@pytest.mark.parametrize("solver", [Picard(), Broyden()], ids=str)
def test_a_residual_at_the_rounding_errors_of_the_adjoint_is_solved(solver):
    # (I - J)^-1 is 200 long, so float32 ends at 1e-5 of the incoming gradient.
    q, _ = torch.linalg.qr(torch.randn(30, 30, generator=seeded(0)))
    a = (q * torch.linspace(0, 0.995, 30)) @ q.T
    x = torch.randn(4, 30, generator=seeded(1)).requires_grad_()
    mode = Implicit(solver=solver, max_steps=6000, tol=1e-8)
    solution = fixed_point(lambda z: z @ a + x, x, gradient=mode, max_steps=3)
    solution.z.sum().backward()
    assert solution.adjoint.failed == 0
    exact = torch.linalg.solve(torch.eye(30).double() - a.double(), torch.ones(30).double())
    torch.testing.assert_close(x.grad, exact.float().expand(4, -1), rtol=2e-2, atol=2e-3)


# ---------------------------------------------------------------- in training


def objective(**solve) -> IterateLoss:
    mode = Implicit(**solve)
    return IterateLoss(tiny_get(), iterations=2, equilibrium=Equilibrium(gradient=mode))


def test_the_losses_know_the_share_of_failed_adjoints_after_the_backward_pass():
    for solve, share in (({"max_steps": 40, "tol": 1e-4}, 0), ({"max_steps": 1, "tol": 1e-9}, 1)):
        losses = objective(**solve)(normal(3), None, normal(3, seed=2))
        assert losses.adjoint_failed is None
        losses.total(0.5).backward()
        assert losses.adjoint_failed == share


def test_other_gradients_have_no_adjoint():
    losses = IterateLoss(tiny_get())(normal(3), None, normal(3, seed=2))
    losses.total(0.5).backward()
    assert losses.adjoint_failed is None


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_a_training_step_reports_failed_adjoints_of_implicit_training_only(gradient, tmp_path):
    config = TrainConfig(
        output_dir=tmp_path,
        pairs="",
        gradient=gradient,
        solver_tol=1e-9,
        solver_max_steps=1,
        global_batch_size=4,
        gradient_accumulation_steps=2,
    )
    student = tiny_get()
    figures = TrainingStep(config, student)(random_pairs(student, 4), 0)
    assert ("adjoint_failed" in figures) == (gradient == "implicit")
    assert figures.get("adjoint_failed", 1) == 1


def test_adjoints_that_fail_are_a_metric_and_are_reported_once(train, pairs, tmp_path):
    short = "--gradient", "implicit", "--solver_max_steps", 1, "--solver_tol", 1e-9
    steps = "--max_train_steps", 5, "--log_steps", 1
    shown = completed(train(tmp_path / "run", "--pairs", pairs, *short, *steps))
    assert shown.out.count("their implicit gradients are wrong") == 1
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    # In the first steps the decoder is zero, and with it the gradient of the state.
    assert sum('"adjoint_failed": 1.0' in line for line in lines) >= 2
