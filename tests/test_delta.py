"""Thresholded changes: exact at 0, bounded above it, counted by hand, never wrongly converged."""

import json
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from get import GETPipeline
from get.cost import Macs
from get.equilibrium import DeltaMemory, Outcome, Unit, fixed_point
from get.errors import InputError
from pipeline.recipes.settings_make import SampleConfig
from pipeline.sample import main as sample

from .problems import contraction, normal, seeded, tiny_get, tiny_vit

UNITS = get_args(Unit)
EVERY_UNIT = pytest.mark.parametrize("unit", UNITS)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer


def evaluate(delta: DeltaMemory, layer: nn.Linear, x: Tensor, full: Tensor | bool = False):
    delta.next(full)
    return delta(layer, x)


def slow_map(delta: DeltaMemory, norm: float = 0.9, dimension: int = 8):
    """Return a linear map with this norm in every direction, through a thresholded layer."""
    layer = linear(norm * torch.eye(dimension, dtype=torch.float64))
    return lambda z, x: delta(layer, z) + x


# ---------------------------------------------------------------- one layer


def test_the_work_of_single_elements_is_what_a_hand_count_says():
    layer, delta = nn.Linear(3, 2), DeltaMemory(0.1, "element")
    x = torch.zeros(2, 3)
    evaluate(delta, layer, x)  # nothing is known: 2 samples x 3 inputs x 2 outputs
    x = torch.tensor([[0.5, 0.05, 0.0], [0.0, -0.2, 0.3]])
    evaluate(delta, layer, x)  # three inputs have changed by more than 0.1
    evaluate(delta, layer, x + 0.06)  # the second input of the first sample by 0.11 since it was
    assert delta.macs == [12, 6, 2]
    assert delta.dense_macs == [12, 12, 12]
    assert delta.surplus_macs == 6 + 10


def test_the_work_of_tokens_and_samples_is_what_a_hand_count_says():
    x = torch.zeros(2, 3, 4)
    y = x.clone()
    y[0, 0, 0] = y[0, 2, 3] = 1
    for unit, groups in (("token", 2), ("sample", 3)):  # two tokens, or the three of a sample
        layer, delta = nn.Linear(4, 5), DeltaMemory(0.5, unit)
        evaluate(delta, layer, x)
        with Macs() as work:
            assert torch.allclose(evaluate(delta, layer, y), layer(y))
        assert delta.macs == [6 * 20, groups * 20]
        assert work.total == groups * 20 + 6 * 20  # the second term is layer(y)
        assert delta.surplus_macs == 0


@EVERY_UNIT
def test_an_output_stays_within_threshold_times_the_row_sums_of_the_weights(unit: Unit):
    generator = seeded(0)
    layer = nn.Linear(6, 5, dtype=torch.float64)
    delta, x = DeltaMemory(0.03, unit), torch.randn(4, 3, 6, generator=generator).double()
    bound = 0.03 * layer.weight.abs().sum(1) + 1e-12
    worst = torch.zeros(())
    for _ in range(200):
        x = x + 0.01 * torch.randn(x.shape, generator=generator).double()
        error = (evaluate(delta, layer, x) - layer(x)).abs()
        assert (error <= bound).all()
        worst = torch.maximum(worst, error.max())
    assert worst > 1e-3  # it does skip
    assert sum(delta.macs) < sum(delta.dense_macs)


@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3)], ids=str)
def test_wide_layers_add_up_the_columns_of_few_changes_and_count_the_same(rows: tuple[int, ...]):
    generator = seeded(0)
    layer = nn.Linear(64, 512, dtype=torch.float64)
    delta, x = DeltaMemory(0.5, "element"), torch.zeros(*rows, 64, dtype=torch.float64)
    evaluate(delta, layer, x)
    for changes in (0, 1, 3, 64):  # few inputs, then all: the product is whole
        x = x.clone()
        x[..., :changes] += 1 + torch.rand(*rows, changes, generator=generator)
        with Macs() as made:
            y = evaluate(delta, layer, x)
            layer(x)
        torch.testing.assert_close(y, layer(x))
        needed = x.numel() // 64 * changes * 512
        assert delta.macs[-1] == needed
        expected = needed if changes == 64 else 0  # torch's table has no sum of columns
        assert made.total - x.numel() * 512 == expected  # the first product is layer(x)
    layer.weight.mul_(2)  # a layer that has changed is read again
    delta.start()
    evaluate(delta, layer, x)
    x = x + torch.nn.functional.one_hot(torch.tensor(3), 64)
    torch.testing.assert_close(evaluate(delta, layer, x), layer(x))


@EVERY_UNIT
def test_inputs_that_stand_still_cost_nothing_and_add_no_bias(unit: Unit):
    layer, delta = linear(torch.eye(3), torch.ones(3)), DeltaMemory(0.0, unit)
    x = torch.arange(12.0).view(2, 2, 3)
    for _ in range(3):
        assert torch.equal(evaluate(delta, layer, x), x + 1)
    assert delta.macs == [36, 0, 0]


@EVERY_UNIT
def test_samples_to_evaluate_in_full_are_exact_and_counted(unit: Unit):
    layer, delta, x = nn.Linear(6, 5), DeltaMemory(1.0, unit), torch.zeros(3, 2, 6)
    evaluate(delta, layer, x)
    full = torch.tensor([False, True, False])
    y = evaluate(delta, layer, x + 0.5, full)
    assert torch.equal(y[1], layer(x + 0.5)[1])
    assert torch.equal(y[0], layer(x)[0])
    assert delta.macs == [180, 60]


# ---------------------------------------------------------------- a solve


@EVERY_UNIT
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_threshold_0_is_the_dense_network_and_its_work(unit: Unit, iterations: int):
    model, noise = tiny_get().double(), normal(3).double()
    delta = DeltaMemory(0.0, unit)
    with Macs() as work:
        dense = model(noise, iterations=iterations)
    with Macs() as made:
        skipping = model(noise, iterations=iterations, delta=delta)
    torch.testing.assert_close(skipping, dense, rtol=1e-12, atol=1e-12)
    assert made.total - delta.surplus_macs == work.total
    assert delta.macs == delta.dense_macs


@EVERY_UNIT
def test_the_counted_savings_are_what_torch_does_not_multiply(unit: Unit):
    """Attention is not counted by the memory; only "sample" can skip it."""
    model, noise, delta = tiny_get(), normal(4), DeltaMemory(0.1, unit)
    with Macs() as dense:
        model(noise, iterations=6)
    with Macs() as made:
        model(noise, iterations=6, delta=delta)
    saved, linears = dense.total - made.total + delta.surplus_macs, sum(delta.dense_macs)
    assert saved >= linears - sum(delta.macs) > 0
    assert unit == "sample" or saved == linears - sum(delta.macs)
    assert delta.macs[0] == delta.macs[-1] == delta.dense_macs[0]
    assert max(delta.macs[2:-1]) < delta.dense_macs[0]


def test_a_solve_remembers_nothing_of_the_one_before():
    model, delta = tiny_get(), DeltaMemory(0.2, "element")
    first, second = normal(2, seed=1), normal(2, seed=2)
    model(first, iterations=4, delta=delta)
    again = model(second, iterations=4, delta=delta)
    assert torch.equal(again, model(second, iterations=4, delta=DeltaMemory(0.2, "element")))


@pytest.mark.parametrize("unit", ["element", "token"])
def test_an_error_is_at_most_threshold_times_norm_over_1_minus_contraction(unit: Unit):
    weight = contraction(8, 0.7)
    x = torch.randn(5, 8, generator=seeded(1)).double()
    exact = torch.linalg.solve(torch.eye(8).double() - weight, x.T).T
    layer = linear(weight)
    for threshold in (0.0, 1e-4, 1e-2):
        delta = DeltaMemory(threshold, unit)
        solution = fixed_point(
            lambda z, x, delta=delta: delta(layer, z) + x,
            torch.zeros_like(x),
            inputs=(x,),
            max_steps=120,
            select="last",
            carry=delta,
        )
        error = (solution.z - exact).norm(dim=1)
        # Each ignored change is below the threshold, so their vector's norm is below sqrt(8) of it.
        assert (error <= 0.7 * threshold * 8**0.5 / (1 - 0.7) + 1e-12).all()


@EVERY_UNIT
@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_a_state_that_small_changes_no_longer_move_is_not_called_converged(unit: Unit, tol: float):
    """The map contracts by 0.999; thresholds hold it far from its fixed point."""
    delta = DeltaMemory(0.5, unit)
    f, x = slow_map(delta, 0.999), torch.ones(3, 8, dtype=torch.float64)
    z0 = torch.full_like(x, 200.0)
    solution = fixed_point(f, z0, inputs=(x,), max_steps=40, tol=tol, atol=0.0, carry=delta)
    dense = 0.999 * solution.z + x
    assert solution.outcome.tolist() == [Outcome.MAX_STEPS] * 3
    residual = (dense - solution.z).norm(dim=1) / dense.norm(dim=1)
    torch.testing.assert_close(solution.residual, residual)
    assert (residual > 1e-3).all()


@EVERY_UNIT
def test_what_converges_does_so_in_a_full_evaluation_even_if_shortcuts_had_stalled(unit: Unit):
    delta = DeltaMemory(0.05, unit)
    f, x = slow_map(delta, 0.8), torch.ones(3, 8, dtype=torch.float64)
    solution = fixed_point(
        f, torch.zeros_like(x), inputs=(x,), max_steps=200, tol=1e-3, carry=delta
    )
    assert solution.outcome.tolist() == [Outcome.CONVERGED] * 3
    assert ((solution.z - 5).abs() < 0.03).all()
    residual = (0.8 * solution.z + x - solution.z).norm(dim=1) / (0.8 * solution.z + x).norm(dim=1)
    torch.testing.assert_close(solution.residual, residual)
    assert (residual <= 1e-3).all()


@EVERY_UNIT
@pytest.mark.parametrize("check_every", [1, 3])
def test_samples_that_leave_the_batch_take_their_memory_with_them(unit: Unit, check_every: int):
    rate = torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)[:, None]
    x = torch.randn(4, 8, generator=seeded(3)).double()
    weight = contraction(8, 1.0)

    def solve(rows: slice, compact: bool):
        delta, layer = DeltaMemory(1e-3, unit), linear(weight)
        return fixed_point(
            lambda z, x, rate: rate * delta(layer, z) + x,
            torch.zeros_like(x[rows]),
            inputs=(x[rows], rate[rows]),
            max_steps=60,
            tol=1e-3,
            check_every=check_every,
            compact=compact,
            carry=delta,
        )

    whole, compact = solve(slice(None), False), solve(slice(None), True)
    assert len(compact.evaluations.unique()) > 1
    for name in ("z", "residual", "evaluations", "outcome"):
        torch.testing.assert_close(getattr(compact, name), getattr(whole, name))
        alone = torch.cat([getattr(solve(slice(i, i + 1), True), name) for i in range(4)])
        torch.testing.assert_close(alone, getattr(whole, name))


# ---------------------------------------------------------------- use and refusals


def test_sample_takes_a_threshold(tmp_path):
    model = tiny_get(channels=1)
    GETPipeline(model).save_pretrained(tmp_path / "model")
    for threshold in (0.0, 0.3):
        folder = tmp_path / f"{threshold}"
        config = SampleConfig(
            model=tmp_path / "model",
            output_dir=folder,
            num_images=2,
            iterations=4,
            delta_threshold=threshold,
        )
        sample(config)
        assert json.loads((folder / "sample.json").read_text()).get("delta_threshold") == (
            threshold or None
        )
        assert len(list(folder.glob("0*.png"))) == 2


def test_refusals_say_what_was_expected():
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a threshold of 0 or more"):
            DeltaMemory(threshold)
    with pytest.raises(InputError, match="expected a model that iterates"):
        tiny_vit().images(normal(1), delta=DeltaMemory(0.1))
    model = tiny_get()
    with torch.enable_grad(), pytest.raises(ValueError, match="expected no gradients"):
        model(normal(1), delta=DeltaMemory(0.1))
    with torch.enable_grad(), pytest.raises(ValueError, match="expected no gradients"):
        DeltaMemory(0.1)(nn.Linear(2, 2), torch.zeros(1, 2))
