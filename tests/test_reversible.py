"""The reversible iteration: its fixed points, and its exact gradient in flat memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from get.cost import LiveBytes
from get.equilibrium import Outcome, Picard, Reversible, Solution, Unrolled, fixed_point
from get.losses import IterateLoss
from get.models import Equilibrium

from .problems import contraction, normal, seeded, tanh_layer, tiny_get

REVERSE = Unrolled(reverse=True)


def injection(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 16, generator=seeded(1)).to(dtype).requires_grad_()


def solve(
    x: Tensor, w: Tensor, gradient: Unrolled, steps: int, damping: float = 0.5, **options
) -> Solution:
    return fixed_point(
        lambda z, x: tanh_layer(z, x, w),
        x * 0,
        inputs=(x,),
        solver=Reversible(damping=damping),
        gradient=gradient,
        max_steps=steps,
        **options,
    )


def gradients(dtype: torch.dtype, norm: float, *how, **options) -> tuple[Tensor, ...]:
    """Return the gradients of a cubic loss with respect to the injection and the weight."""
    x, w = injection(dtype), contraction(16, norm).to(dtype).requires_grad_()
    z = solve(x, w, *how, select="last", **options).z
    return torch.autograd.grad((z**3).sum(), (x, w))


def assert_near(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


# ---------------------------------------------------------------- the iteration


def test_the_states_are_those_of_the_paper():
    x, w, b = injection().detach(), contraction(16, 0.8), 0.7
    path = solve(x, w, Unrolled(), 10, b, keep_iterates=True).iterates
    y, z, expected = x * 0, x * 0, []
    for _ in range(5):
        y = (1 - b) * y + b * tanh_layer(z, x, w)
        z = (1 - b) * z + b * tanh_layer(y, x, w)
        expected += [y, z]
    torch.testing.assert_close(torch.stack(path), torch.stack(expected))


@pytest.mark.parametrize("compact", [False, True])
def test_it_finds_the_fixed_point_of_every_sample(compact):
    x, w = injection().detach(), contraction(16, 0.9)
    found = solve(x, w, Unrolled(), 300, tol=1e-10, compact=compact)
    assert found.outcome.tolist() == [Outcome.CONVERGED] * 4
    plain = fixed_point(lambda z: tanh_layer(z, x, w), x, solver=Picard(), max_steps=500).z
    torch.testing.assert_close(found.z, plain, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize(
    ("norm", "damping", "steps"),
    [
        (0.5, 0.5, 48),
        (0.5, 0.65, 48),
        (0.5, 0.8, 48),
        (0.9, 0.5, 48),
        (0.9, 0.8, 24),
        (0.9, 0.8, 1),
    ],
)
def test_in_float64_it_is_the_unrolled_gradient_to_ten_digits(norm, damping, steps):
    ours, theirs = (
        gradients(torch.float64, norm, mode, steps, damping) for mode in (REVERSE, Unrolled())
    )
    assert_near(ours, theirs, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [2, 12, 48])
@pytest.mark.parametrize("damping", [0.5, 0.65, 0.8])
def test_lower_precision_loses_nothing_up_to_48_steps(dtype, damping, steps):
    # The sequence is kept in float64, so the walk back meets the very states of the way there.
    for norm in (0.5, 0.9):
        ours, theirs = (
            gradients(dtype, norm, mode, steps, damping) for mode in (REVERSE, Unrolled())
        )
        assert_near(ours, theirs, 1e-6 if dtype == torch.float32 else 1e-2)


def test_the_error_grows_with_steps_damping_and_norm_and_is_small_long_after_convergence():
    def error(norm: float, damping: float, steps: int) -> float:
        ours, theirs = (
            gradients(torch.float64, norm, mode, steps, damping) for mode in (REVERSE, Unrolled())
        )
        return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))

    assert error(0.9, 0.8, 12) < error(0.9, 0.8, 24) < error(0.9, 0.8, 48) < 1e-6
    assert error(0.9, 0.5, 48) < error(0.9, 0.8, 48)
    assert error(0.5, 0.8, 48) < error(0.9, 0.8, 48)


def test_gradients_of_start_input_and_closed_over_weight_pass_gradcheck():
    def by(z0: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return fixed_point(
            lambda z, x: tanh_layer(z, x, w),
            z0,
            inputs=(x,),
            solver=Reversible(damping=0.6),
            gradient=REVERSE,
            max_steps=5,
        ).z

    z0, x = (torch.randn(2, 3, generator=seeded(i)).double() for i in (1, 2))
    leaves = [t.requires_grad_() for t in (z0, x, contraction(3, 0.7))]
    assert torch.autograd.gradcheck(by, leaves)


@pytest.mark.parametrize("select", ["best", "last", "lowest_residual"])
def test_it_holds_for_tuples_of_tensors_and_closed_over_features(select):
    w, u = contraction(12, 0.8), torch.randn(2, 12, generator=seeded(3)).double()

    def run(mode: Unrolled) -> tuple[Tensor, ...]:
        leaves = w.clone().requires_grad_(), u.clone().requires_grad_()
        features = leaves[1].sin()  # closed over, and no leaf

        def pair(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            a, b = z
            return tanh_layer(a, features, leaves[0]), b / 2 + a.view(2, 3, 4).cos()

        solution = fixed_point(
            pair,
            (torch.zeros(2, 12).double(), torch.zeros(2, 3, 4).double()),
            solver=Reversible(),
            gradient=mode,
            max_steps=9,
            select=select,
        )
        a, b = solution.z
        return torch.autograd.grad((a**2).sum() + (b**2).sum(), leaves)

    assert_near(run(REVERSE), run(Unrolled()), 1e-12)


def test_a_map_that_saves_nothing_for_its_gradient_is_walked_back_all_the_same():
    def f(z: Tensor) -> Tensor:  # linear where z < 1.5, so only some calls are computed again
        return z / 2 + w if bool((z < 1.5).all()) else z * w.tanh()

    w = torch.ones(1, 1).double().requires_grad_()
    by_w = []
    for mode in (REVERSE, Unrolled()):
        z0 = torch.zeros(1, 1).double()
        options: dict[str, Any] = {"solver": Reversible(), "gradient": mode, "select": "last"}
        by_w.append(torch.autograd.grad(fixed_point(f, z0, max_steps=12, **options).z, w))
    assert_near(by_w[0], by_w[1], 1e-12)


def test_a_graph_that_is_kept_can_be_walked_back_again():
    x, w = injection(), contraction(16, 0.9).requires_grad_()
    z = solve(x, w, REVERSE, 12).z
    first, again = (torch.autograd.grad(z.sum(), (x, w), retain_graph=True) for _ in range(2))
    assert_near(first, again, 1e-12)
    assert (x.grad, w.grad) == (None, None)


def test_under_autocast_it_is_the_unrolled_gradient():
    w, x = contraction(16, 0.8).float().requires_grad_(), injection(torch.float32)

    def run(mode: Unrolled) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"solver": Reversible(), "gradient": mode}
        with torch.autocast("cpu", torch.bfloat16):
            z = fixed_point(lambda z: tanh_layer(z, x, w).float(), x, max_steps=12, **options).z
        return torch.autograd.grad(z.sum(), (x, w))

    assert_near(run(REVERSE), run(Unrolled()), 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_get_is_trained_by_it(checkpointing):
    found = []
    for mode in (REVERSE, Unrolled()):
        model = tiny_get()
        model.gradient_checkpointing = checkpointing and mode.reverse
        equilibrium = Equilibrium(gradient=mode, solver=Reversible(), max_steps=12, tol=0.0)
        module = IterateLoss(model, iterations=0, equilibrium=equilibrium)
        module(normal(4), None, normal(4, seed=2)).total(0.5).backward()
        found.append(tuple(p.grad for p in model.parameters() if p.grad is not None))
    assert len(found[0]) == len(found[1]) > 20
    assert_near(found[0], found[1], 1e-5)


def test_memory_does_not_grow_with_the_steps():
    w = contraction(64, 0.9).float().requires_grad_()
    x = torch.randn(256, 64, generator=seeded(1))

    def peak(mode: Unrolled, steps: int) -> int:
        with LiveBytes() as memory:
            solve(x, w, mode, steps, select="last").z.sum().backward()
        return memory.peak

    grown = (peak(REVERSE, 52) - peak(REVERSE, 4)) / 48
    assert grown <= 256 * 4 * 4  # a few numbers a sample: the residuals
    assert (peak(Unrolled(), 52) - peak(Unrolled(), 4)) / 48 > 20 * grown


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("options", [{"solver": Picard()}, {"tol": 1e-3}, {"atol": 1e-3}], ids=str)
def test_what_cannot_be_walked_back_is_refused(options):
    arguments: dict[str, Any] = {"solver": Reversible(), "gradient": REVERSE, "max_steps": 3}
    arguments |= options
    with pytest.raises(ValueError, match=r"expected solver=Reversible\(\) and no tolerances"):
        fixed_point(lambda z: z / 2, torch.ones(2, 3), **arguments)


@pytest.mark.parametrize("damping", [0.0, 1.0, -0.5, float("nan")])
def test_a_step_length_without_an_inverse_is_refused(damping):
    with pytest.raises(ValueError, match="expected damping"):
        Reversible(damping=damping)


def test_two_ways_of_saving_memory_at_once_are_refused():
    with pytest.raises(ValueError, match="choose one"):
        Unrolled(checkpoint=True, reverse=True)
