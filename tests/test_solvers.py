"""The solvers on maps with known fixed points: right answers, counts, and outcomes."""

import pytest
import torch
from torch import Tensor

from get.equilibrium import (
    Anderson,
    Broyden,
    Implicit,
    Outcome,
    Phantom,
    Picard,
    Unrolled,
    fixed_point,
)

from .problems import as_users_run_it as as_users_run_it
from .problems import contraction

SOLVERS = [
    Picard(),
    Picard(damping=0.7),
    Anderson(),
    Anderson(memory=2),
    Anderson(restart=False),
    Broyden(),
]
SOLVERS += [Broyden(memory=4)]


def linear(z: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """Apply one matrix a sample: z <- a z + x."""
    return (a @ z[:, :, None])[:, :, 0] + x


def mixed_batch(norms: tuple[float, ...], dimension: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Return injections, one matrix a sample (of these norms), and the fixed points."""
    a = torch.stack([contraction(dimension, norm, i) for i, norm in enumerate(norms)])
    x = torch.randn(len(norms), dimension, generator=torch.Generator().manual_seed(9)).double()
    return x, a, torch.linalg.solve(torch.eye(dimension).double() - a, x[:, :, None])[:, :, 0]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_solver_finds_the_solution_of_a_linear_system(solver):
    x, a, answer = mixed_batch((0.3, 0.9, 0.99))
    solution = fixed_point(
        linear, torch.zeros_like(x), inputs=(x, a), solver=solver, max_steps=4000, tol=1e-12
    )
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * 3
    torch.testing.assert_close(solution.z, answer, rtol=1e-8, atol=1e-8)


def test_anderson_that_restarts_needs_no_more_than_plain_iteration_on_a_rough_map():
    """Slopes of both signs that change with z, where the textbook method does not converge."""
    x, a, _ = mixed_batch((1.3,) * 8)

    def rough(z, x, a):
        return torch.sin(2 * linear(z, x, a)) / 2.6

    def evaluations(solver):
        return fixed_point(
            rough, x, inputs=(x, a), solver=solver, max_steps=300, tol=1e-8
        ).evaluations.double()

    assert evaluations(Anderson()).mean() <= evaluations(Picard()).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [Anderson(), Anderson(ridge=0.0, restart=False)], ids=str)
def test_anderson_lives_with_residuals_that_depend_on_each_other(solver, dtype):
    """The errors of a map z <- a z + b have one direction, and are rounding errors soon."""
    a, b = torch.linspace(-0.99, 0.99, 512, dtype=dtype)[:, None].requires_grad_(), torch.arange(3)
    solution = fixed_point(
        lambda z, a: a * z + b,
        torch.zeros(512, 3, dtype=dtype),
        inputs=(a,),
        solver=solver,
        max_steps=12,
        select="last",
    )
    torch.testing.assert_close(solution.z, b / (1 - a), rtol=1e-4, atol=0)
    assert torch.autograd.grad(solution.z.sum(), a)[0].isfinite().all()


def test_broyden_ends_within_twice_the_dimension_of_a_linear_map():
    dimension = 8
    x, a, answer = mixed_batch((0.95,), dimension)
    solution = fixed_point(
        linear, x, inputs=(x, a), solver=Broyden(memory=99), max_steps=2 * dimension + 2, tol=1e-10
    )
    assert solution.outcome.tolist() == [Outcome.CONVERGED]
    torch.testing.assert_close(solution.z, answer, rtol=1e-8, atol=1e-8)


def test_anderson_and_broyden_find_a_repelling_fixed_point_that_picard_leaves():
    x, a, answer = mixed_batch((1.6,), 6)
    inputs, z0 = (x, -(a @ a.mT)), torch.zeros_like(x)  # eigenvalues down to -2.56
    answer = torch.linalg.solve(torch.eye(6).double() - inputs[1], x[:, :, None])[:, :, 0]
    picard = fixed_point(linear, z0, inputs=inputs, max_steps=200, tol=1e-10)
    assert picard.outcome.tolist() == [Outcome.MAX_STEPS]
    for solver in (Anderson(memory=8, restart=False), Broyden()):
        solution = fixed_point(linear, z0, inputs=inputs, solver=solver, max_steps=99, tol=1e-10)
        torch.testing.assert_close(solution.z, answer, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_residual_is_the_true_one_of_the_state_returned(solver):
    x, a, _ = mixed_batch((0.5, 0.9))
    solution = fixed_point(linear, x, inputs=(x, a), solver=solver, max_steps=7)
    image = linear(solution.z, x, a)
    true = (image - solution.z).norm(dim=1) / image.norm(dim=1)
    torch.testing.assert_close(solution.residual, true)
    assert torch.equal(solution.residual, solution.trace.amin(0))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_evaluations_are_calls_of_f(solver):
    x, a, _ = mixed_batch((0.9,))
    calls = []

    def counted(z, x, a):
        calls.append(len(z))
        return linear(z, x, a)

    solution = fixed_point(counted, x, inputs=(x, a), solver=solver, max_steps=500, tol=1e-8)
    assert solution.evaluations.tolist() == [len(calls)] == [len(solution.trace)]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_scale_of_the_problem_changes_no_count(solver, scale):
    x, a, _ = mixed_batch((0.5, 0.9))
    counts = [
        fixed_point(linear, s * x, inputs=(s * x, a), solver=solver, max_steps=300, tol=1e-9)
        for s in (1.0, scale)
    ]
    # A quasi-Newton path may part in the last digits; the counts then differ by one at most.
    assert (counts[0].evaluations - counts[1].evaluations).abs().max() <= 1


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_poisoned_or_slow_sample_changes_nothing_for_its_batch_mates(solver):
    x, a, _ = mixed_batch((0.5, 0.999, 0.4))
    a[2, 0, 0] = torch.nan
    together = fixed_point(linear, x, inputs=(x, a), solver=solver, max_steps=40, tol=1e-7)
    alone = fixed_point(linear, x[:1], inputs=(x[:1], a[:1]), solver=solver, max_steps=40, tol=1e-7)
    torch.testing.assert_close(together.z[0], alone.z[0], rtol=1e-12, atol=1e-12)
    assert together.evaluations[0] == alone.evaluations[0]
    assert together.outcome[2] == Outcome.NON_FINITE
    assert together.z.isfinite().all()  # the best measured state of the poisoned one is z0


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("select", ["best", "last"])
def test_samples_that_leave_the_batch_give_the_same_answer_for_less_work(solver, select):
    x, a, _ = mixed_batch((0.1, 0.5, 0.95, 0.3))
    work = []

    def counted(z, x, a):
        work.append(len(z))
        return linear(z, x, a)

    def solve(compact):
        work.clear()
        solution = fixed_point(
            counted,
            x,
            inputs=(x, a),
            solver=solver,
            max_steps=400,
            tol=1e-9,
            select=select,
            compact=compact,
        )
        return solution, sum(work)

    (whole, dense), (small, sparse) = solve(False), solve(True)
    torch.testing.assert_close(small.z, whole.z, rtol=1e-7, atol=1e-9)
    assert torch.equal(small.outcome, whole.outcome)
    assert sparse == small.evaluations.sum() < 0.75 * dense


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_sized_tensor_hidden_from_compaction_is_an_error(size):
    x, a, _ = mixed_batch((0.1, 0.9, 0.9, 0.9)[: 1 + size])
    with pytest.raises((ValueError, RuntimeError), match=r"expected f to return|must match"):
        fixed_point(
            lambda z, a: linear(z, x, a), x, inputs=(a,), max_steps=99, tol=1e-6, compact=True
        )


def test_growth_is_reported_as_drift_and_never_as_convergence():
    drift = fixed_point(lambda z: z + 1, torch.zeros(1, 4), max_steps=1200, tol=1e-3)
    assert drift.outcome.tolist() == [Outcome.DRIFT]
    slow = fixed_point(
        lambda z: z + 1 / (1 + z.abs()), torch.ones(1, 4), max_steps=1200, tol=1e-3
    )  # z grows like a square root
    assert slow.outcome.tolist() == [Outcome.DRIFT]
    x, a, answer = mixed_batch((0.9,))
    warm = fixed_point(linear, answer + 1e-4, inputs=(x, a), max_steps=99, tol=1e-9)
    assert warm.outcome.tolist() == [Outcome.CONVERGED]


def test_a_warm_start_at_the_answer_costs_one_evaluation():
    x, a, answer = mixed_batch((0.9,))
    for solver in SOLVERS:
        warm = fixed_point(linear, answer, inputs=(x, a), solver=solver, max_steps=99, tol=1e-9)
        assert warm.evaluations.tolist() == [1]


def test_a_tuple_of_tensors_is_one_state():
    x, a, _ = mixed_batch((0.5, 0.8))

    def pair(z, x, a):
        return linear(z[0], x, a), z[1] * 0.5 + z[0].view(2, 3, 4)

    z0 = (torch.zeros_like(x), torch.zeros(2, 3, 4).double())
    solution = fixed_point(
        pair, z0, inputs=(x, a), solver=Anderson(), max_steps=200, tol=1e-12, keep_iterates=True
    )
    one = fixed_point(linear, z0[0], inputs=(x, a), max_steps=900, tol=1e-13).z
    torch.testing.assert_close(solution.z[0], one, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.z[1], 2 * one.view(2, 3, 4), rtol=1e-8, atol=1e-8)
    assert [part.shape for part in solution.iterates[0]] == [(2, 12), (2, 3, 4)]


BAD_MAPS = {
    "shape": lambda z: z[:, :-1],
    "dtype": lambda z: z.double(),
    "kind": lambda z: (z,),
    "nothing": lambda z: None,
}


@pytest.mark.parametrize("name", BAD_MAPS)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_map_that_returns_another_kind_of_state_is_refused(name):
    with pytest.raises(ValueError, match="expected f to return"):
        fixed_point(BAD_MAPS[name], torch.ones(2, 3), max_steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps >= 1"),
        ({"max_steps": 1, "tol": -1e-3}, "tol >= 0"),
        ({"max_steps": 1, "tol": float("nan")}, "tol >= 0"),
        ({"max_steps": 1, "compact": True, "keep_iterates": True}, "choose one"),
    ],
)
def test_impossible_stopping_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(lambda z: z, torch.ones(2, 3), **options)


@pytest.mark.parametrize(
    "z0",
    [torch.ones(3), torch.ones(2, 3, dtype=torch.int64), (), (torch.ones(2, 3), torch.ones(1, 3))],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_start_that_is_not_a_batch_of_floats_is_refused(z0):
    with pytest.raises(ValueError, match="expected z0"):
        fixed_point(lambda z: z, z0, max_steps=1)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (Anderson, {"memory": 1}),
        (Anderson, {"damping": 0.0}),
        (Anderson, {"ridge": -1.0}),
        (Anderson, {"ridge": float("nan")}),
        (Implicit, {"tol": float("nan")}),
        (Broyden, {"memory": 0}),
        (Phantom, {"steps": 0}),
        (Phantom, {"damping": 2.0}),
    ],
)
def test_settings_out_of_range_are_refused(kind, setting):
    with pytest.raises(ValueError, match="expected"):
        kind(**setting)


def test_unrolled_is_the_default_and_differentiates_every_step():
    x, a, _ = mixed_batch((0.5,))
    x.requires_grad_()
    z = fixed_point(linear, x * 0, inputs=(x, a), max_steps=3, select="last").z
    by_default = torch.autograd.grad(z.sum(), x)[0]
    z = fixed_point(linear, x * 0, inputs=(x, a), max_steps=3, select="last", gradient=Unrolled()).z
    assert torch.equal(by_default, torch.autograd.grad(z.sum(), x)[0])
