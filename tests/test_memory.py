"""Memory of training: bytes kept, bytes at the peak, and recomputing that changes no gradient."""

import pytest
import torch

from get.cost import LiveBytes
from get.equilibrium import Implicit, Phantom, Picard
from get.losses import IterateLoss
from get.models import GET, Equilibrium

from .problems import normal, seeded, tiny_get

STATE = 64 * 16 * 16 * 4  # bytes of a state: 64 images of 16 tokens of width 16


def step(model: GET, iterations: int, gradient: Phantom | Implicit | None = None) -> LiveBytes:
    """Return the memory of one training step, gradient buffers in place; `now` before backward."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    noise, target = normal(64), normal(64, seed=2)
    equilibrium = None
    if gradient is not None:
        equilibrium = Equilibrium(gradient=gradient, solver=Picard(), max_steps=iterations, tol=0.0)
    module = IterateLoss(model, iterations=0 if gradient else iterations, equilibrium=equilibrium)
    with LiveBytes() as memory:
        loss = module(noise, None, target).iterates.sum()
        kept = memory.now
        loss.backward()
    del loss
    memory.now = kept
    return memory


def checkpointed(**options) -> GET:
    model = tiny_get(**options)
    model.enable_gradient_checkpointing()
    return model


def test_a_tensor_counts_from_its_operation_until_its_last_view_is_gone():
    with LiveBytes() as memory:
        x = torch.zeros(1000)
        y = x + 1
        view = y[:10]
        assert memory.now == 8000
        del y
        assert memory.now == 8000
        del view
        assert memory.now == 4000
        x.add_(1)
        assert (memory.now, memory.peak) == (4000, 8000)
    del x


def test_tensors_made_before_do_not_count():
    x = torch.zeros(1000)
    with LiveBytes() as memory:
        x.view(10, 100).mul_(2)
        assert (memory.now, memory.peak) == (0, 0)


def test_bytes_kept_for_backward_are_those_autograd_saves():
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes() as memory:
        y = x.exp().sum()  # the exponential is saved for its own gradient
        assert memory.now == 4000 + 4
        y.backward()
    assert memory.peak == 2 * 4000 + 4 + 4  # that, the gradient, the sum and its seed


def test_unrolling_keeps_every_iteration_and_checkpointing_one_state_each():
    unrolled = [step(tiny_get(), count).now for count in (2, 4, 8)]
    assert unrolled[2] - unrolled[1] == 2 * (unrolled[1] - unrolled[0]) > 4 * 20 * STATE
    kept = [step(checkpointed(), count) for count in (2, 4, 8)]
    images = 64 * 3 * 8 * 8 * 4  # decoded for the loss: a few copies of every iterate's
    each = (kept[2].now - kept[1].now) / 4
    assert STATE <= each <= STATE + 4 * images
    assert (kept[2].peak - kept[1].peak) / 4 <= 2 * STATE + 8 * images


@pytest.mark.parametrize("gradient", [Phantom(), Implicit(max_steps=8, tol=0.0)], ids=str)
def test_phantom_and_implicit_are_flat_in_the_iterations(gradient):
    few, many = (step(tiny_get(), count, gradient) for count in (4, 48))
    assert few.now == many.now
    assert many.peak - few.peak < STATE


def test_implicit_needs_85_percent_less_than_unrolling_48_iterations():
    unrolled = step(tiny_get(), 48).peak
    assert step(tiny_get(), 48, Implicit(max_steps=48, tol=0.0)).peak < 0.15 * unrolled


def test_a_checkpointed_step_peaks_at_a_block_not_at_an_iteration():
    deep = {"equilibrium_depth": 6, "iterations": 2}
    shallow = {"equilibrium_depth": 2, "iterations": 2}
    nested = step(checkpointed(**deep), 2).peak - step(checkpointed(**shallow), 2).peak
    plain = step(tiny_get(**deep), 2).peak - step(tiny_get(**shallow), 2).peak
    assert nested < 0.4 * plain


@pytest.mark.parametrize(
    "equilibrium",
    [
        None,
        Equilibrium(gradient=Phantom(), max_steps=30, tol=1e-6),
        Equilibrium(gradient=Phantom(checkpoint=True), max_steps=30, tol=1e-6),
        Equilibrium(gradient=Implicit(tol=1e-8), max_steps=30, tol=1e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("draws", [0, 1])
def test_recomputing_changes_no_gradient(equilibrium, draws):
    gradients = []
    for model in (tiny_get(num_classes=3), checkpointed(num_classes=3)):
        module = IterateLoss(model.double(), iterations=2, equilibrium=equilibrium)
        noise, target, labels = normal(2).double(), normal(2).double(), torch.tensor([0, 2])
        found = module(noise, labels, target, penalty_draws=draws, generator=seeded(0))
        loss = found.iterates.sum() + (found.penalty if draws else 0)
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1])
