"""The loop on maps with known iterates: stopping, outcomes, selection, unrolled gradients."""

import ast
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import get.equilibrium
from get.equilibrium import Outcome, Picard, Unrolled, fixed_point

last = partial(fixed_point, select="last")  # plain iteration as GET uses it


def affine(z: Tensor, rate: Tensor, shift: Tensor) -> Tensor:
    """Move every sample at its own rate towards shift / (1 - rate)."""
    return rate[:, None] * z + shift[:, None]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def start(batch: int) -> Tensor:
    return torch.full((batch, 2), 3.0, dtype=torch.float64)


def test_k_steps_on_a_linear_map_give_its_geometric_sum():
    a, b, z0 = 0.5, 2.0, 3.0
    for k in range(1, 8):
        solution = last(affine, start(1), inputs=(column(a), column(b)), max_steps=k)
        expected = a**k * z0 + b * (1 - a**k) / (1 - a)
        torch.testing.assert_close(solution.z, torch.full_like(start(1), expected))
        assert solution.evaluations.tolist() == [k]


def test_a_contraction_by_a_matrix_ends_at_the_solution_of_the_linear_system():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    a = 0.6 * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    solution = last(lambda z, b: z @ a.T + b, b, inputs=(b,), max_steps=200, tol=1e-14)
    torch.testing.assert_close(solution.z, torch.linalg.solve(torch.eye(5).double() - a, b.T).T)
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * 3


@pytest.mark.parametrize("damping", [1.0, 0.5, 0.1])
def test_damping_contracts_by_one_minus_damping_plus_damping_times_the_rate(damping):
    rate, limit, steps = -0.8, 2.0, 7
    solution = last(
        affine,
        start(1),
        inputs=(column(rate), column(limit * (1 - rate))),
        solver=Picard(damping=damping),
        max_steps=steps,
    )
    expected = limit + (3.0 - limit) * (1 - damping + damping * rate) ** steps
    torch.testing.assert_close(solution.z, torch.full_like(start(1), expected))


def test_damping_saves_a_map_that_plain_iteration_leaves():
    inputs = (column(-1.5), column(2.5))  # fixed point 1
    plain, damped = (
        last(affine, start(1), inputs=inputs, solver=Picard(damping=d), max_steps=60)
        for d in (1.0, 0.4)
    )
    assert plain.z.abs().max() > 1e6
    torch.testing.assert_close(damped.z, torch.ones_like(damped.z))


@pytest.mark.parametrize("damping", [0.0, -0.1, 1.1, float("nan")])
def test_a_step_length_outside_0_1_is_refused(damping):
    with pytest.raises(ValueError, match="expected damping"):
        Picard(damping=damping)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="expected max_steps"):
        last(lambda z: z, start(1), max_steps=0)


def test_residual_is_relative_and_belongs_to_the_last_evaluation():
    solution = last(affine, start(1), inputs=(column(0.5), column(0.0)), max_steps=3)
    torch.testing.assert_close(solution.residual, column(1.0))  # |z/2 - z| / |z/2|
    solution = last(affine, start(1), inputs=(column(1.0), column(1.0)), max_steps=2)
    torch.testing.assert_close(solution.residual, column(1 / 5))  # 3, 4, 5


def test_each_sample_stops_by_itself_at_the_first_residual_within_the_tolerance():
    rates, tol = (0.0, 0.1, 0.5, 0.9, 0.999), 1e-6
    shift = [2 * (1 - rate) for rate in rates]
    solution = last(
        affine, start(5), inputs=(column(*rates), column(*shift)), max_steps=200, tol=tol
    )
    for i, rate in enumerate(rates):
        z, steps = 3.0, 0
        while steps < 200:
            z, before, steps = rate * z + shift[i], z, steps + 1
            if abs(z - before) <= tol * abs(z):
                break
        assert solution.evaluations[i] == steps
        torch.testing.assert_close(solution.z[i], torch.full((2,), z, dtype=torch.float64))
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * 4 + [Outcome.MAX_STEPS]
    assert (solution.residual <= tol).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("select", ["best", "last", "lowest_residual"])
@pytest.mark.parametrize("mate", [(0.999, 1.0), (2.0, 1e200), (0.5, float("nan"))])
def test_a_slow_diverging_or_nan_batch_mate_changes_nothing(mate, select):
    def solve(rates, shifts):
        inputs = (column(*rates), column(*shifts))
        return last(affine, start(len(rates)), inputs=inputs, max_steps=50, tol=1e-9, select=select)

    alone, together = solve([0.3], [1.0]), solve([mate[0], 0.3], [mate[1], 1.0])
    for field in ("z", "residual", "evaluations", "outcome"):
        assert torch.equal(getattr(alone, field)[0], getattr(together, field)[1]), field


def test_what_f_does_after_a_sample_has_stopped_is_not_held_against_it():
    def cliff(z, rate):  # nan below 1.2, where the first sample goes after 2, 1.5 and 1.25
        return torch.where(z < 1.2, torch.nan, 1 + rate[:, None] * (z - 1))

    def outcomes(tol):
        z0, rates = torch.full((2, 1), 2.0, dtype=torch.float64), column(0.5, 1.5)
        return last(cliff, z0, inputs=(rates,), max_steps=9, tol=tol).outcome.tolist()

    assert outcomes(0.15) == [Outcome.CONVERGED, Outcome.MAX_STEPS]
    assert outcomes(0.05) == [Outcome.NON_FINITE, Outcome.MAX_STEPS]


def test_a_fault_is_an_outcome_of_its_sample():
    inputs = (column(0.5, 0.5, 1e200), column(0.0, float("inf"), 0.0))
    solution = last(affine, start(3), inputs=inputs, max_steps=4)
    assert solution.outcome.tolist() == [
        Outcome.MAX_STEPS,
        Outcome.NON_FINITE,
        Outcome.NON_FINITE,
    ]
    assert solution.z.isfinite().all(1).tolist() == [True, False, False]


def test_an_exact_fixed_point_has_converged_even_without_a_tolerance():
    solution = last(lambda z: z, start(1) * 0, max_steps=3)
    assert solution.outcome.tolist() == [Outcome.CONVERGED]
    assert solution.residual.tolist() == [0]
    assert solution.evaluations.tolist() == [3]


def test_lowest_residual_returns_the_state_after_the_shortest_step_of_each_sample():
    path = torch.tensor([[3, 9, 8, 20, 20.5], [3, 4, 9, 9.5, 0], [3, 3.1, 5, 0, 9]]).double()

    def follow(z):  # row i walks along path[i]
        seen = (path == z[:, :1]).int().argmax(1)
        return path[torch.arange(3), seen + 1][:, None].expand(-1, 2)

    solution = last(follow, start(3), max_steps=4, select="lowest_residual", keep_iterates=True)
    assert solution.z[:, 0].tolist() == [20.5, 9.5, path[2, 1]]
    assert torch.equal(torch.stack(solution.iterates)[:, :, 0].T, path[:, 1:])


def test_of_equally_short_steps_the_first_counts():
    assert last(lambda z: z + 1, start(1), max_steps=5, select="lowest_residual").z[0, 0] == 4


def test_lowest_residual_ignores_the_steps_after_a_sample_has_stopped():
    path = column(1, 1.1, 100, 101, 101.05)  # stops at 101 with the shortest step behind it

    def follow(z):
        walked = path[((path == z[:, :1]).int().argmax(1) + 1).clamp_max(4)][:, None].expand(-1, 2)
        return torch.where(z < 0, 2 * z, walked)

    mate, z0 = -start(1), torch.ones(1, 2, dtype=torch.float64)
    for batch in (z0, torch.cat([z0, mate])):
        solution = last(follow, batch, max_steps=5, tol=0.01, select="lowest_residual")
        assert solution.z[0].tolist() == [1.1, 1.1]
        assert solution.evaluations[0] == 3


@pytest.mark.parametrize("gradient", [Unrolled(), Unrolled(checkpoint=True)])
def test_unrolled_gradients_equal_those_derived_by_hand(gradient):
    rate, shift, z0, steps = 0.7, 0.3, 2.0, 5
    a, b = column(rate).requires_grad_(), column(shift).requires_grad_()
    z = torch.full((1, 1), z0, dtype=torch.float64, requires_grad=True)
    solution = last(affine, z, inputs=(a, b), gradient=gradient, max_steps=steps)
    by_a, by_b, by_z = torch.autograd.grad(solution.z.sum(), (a, b, z))
    # z_k = a^k z_0 + b (1 + a + ... + a^(k-1))
    slope = steps * rate ** (steps - 1) * z0 + shift * sum(
        k * rate ** (k - 1) for k in range(1, steps)
    )
    torch.testing.assert_close(by_a, column(slope))
    torch.testing.assert_close(by_b, column(sum(rate**k for k in range(steps))))
    torch.testing.assert_close(by_z, column(rate**steps)[None])


@pytest.mark.parametrize("gradient", [Unrolled(), Unrolled(checkpoint=True)])
@pytest.mark.parametrize("select", ["best", "last", "lowest_residual"])
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_unrolled_gradients_pass_gradcheck(gradient, select, damping):
    def solve(z, w, b):
        return last(
            lambda z, w, b: torch.tanh(z @ w + b),
            z,
            inputs=(w, b),
            solver=Picard(damping=damping),
            gradient=gradient,
            select=select,
            max_steps=3,
            tol=0.01,
        ).z

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (3, 3), (2, 3))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    assert torch.autograd.gradcheck(solve, [t.requires_grad_() for t in tensors])


def test_a_nan_batch_mate_leaves_the_gradients_of_others_alone():
    shift = column(float("nan"), 1.0).requires_grad_()
    z = last(affine, start(2), inputs=(column(0.5, 0.5), shift), max_steps=4, tol=1e-3).z
    (gradient,) = torch.autograd.grad(z[1, 0], shift)
    assert gradient[1] == 1 + 0.5 + 0.25 + 0.125


def test_equilibrium_imports_only_torch_jaxtyping_the_standard_library_and_itself():
    roots = {"torch", "jaxtyping", *sys.stdlib_module_names}
    files = list(Path(get.equilibrium.__path__[0]).glob("**/*.py"))
    assert len(files) >= 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name == "get.equilibrium" or name.startswith("get.equilibrium.")
                assert own or name.split(".")[0] in roots, f"{file.name} imports {name}"
