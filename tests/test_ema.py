"""The average of weights moves as its formula says."""

import pytest
import torch
from torch import nn

from get.ema import EMA
from get.errors import InputError

from .problems import normal, tiny_get


def constant(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1).double()
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def test_the_copy_approaches_a_constant_model_geometrically():
    ema = EMA(constant(0.0), 0.9)
    for k in range(1, 6):
        ema.update(constant(1.0))
        expected = torch.full((1, 2), 1 - 0.9**k, dtype=torch.float64)
        torch.testing.assert_close(ema.model.weight.data, expected)


def test_the_copy_is_the_weighted_sum_of_all_models_seen():
    decay, values = 0.7, [2.0, -1.0, 4.0, 0.5]
    ema = EMA(constant(3.0), decay)
    for value in values:
        ema.update(constant(value))
    expected = decay**4 * 3.0
    expected += sum((1 - decay) * decay ** (3 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(ema.model.bias.data, torch.tensor([expected], dtype=torch.float64))


def test_with_a_ramp_the_half_life_is_a_share_of_the_steps_up_to_that_of_the_decay():
    ema = EMA(constant(0.0), 0.9, ramp=0.5)
    assert ema.decay_at(2) == 0.5  # a half-life of one step
    assert ema.decay_at(4) == pytest.approx(0.5**0.5)
    assert ema.decay_at(1000) == 0.9
    for step in (1, 2):
        ema.update(constant(1.0), step)
    expected = torch.full((1, 2), 1 - 0.25 * 0.5, dtype=torch.float64)
    torch.testing.assert_close(ema.model.weight.data, expected)
    with pytest.raises(InputError, match="number of the step"):
        ema.update(constant(1.0))
    with pytest.raises(InputError, match="ramp above 0"):
        EMA(constant(0.0), 0.9, ramp=0.0)


def test_decay_0_is_the_model_itself():
    ema = EMA(constant(0.0), 0.0)
    ema.update(constant(5.0))
    assert ema.model.bias.item() == 5


def test_the_copy_starts_equal_to_the_model_and_shares_nothing_with_it():
    model = tiny_get()
    ema = EMA(model, 0.5)
    before = model(normal(1))
    assert torch.equal(ema.model(normal(1)), before)
    nn.init.zeros_(model.decode.linear.weight)
    assert torch.equal(ema.model(normal(1)), before)


def test_the_copy_is_a_model_in_evaluation_mode_without_gradients():
    model = tiny_get().train()
    ema = EMA(model, 0.5)
    assert type(ema.model) is type(model)
    assert not ema.model.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_an_update_leaves_the_model_alone():
    model = tiny_get()
    ema = EMA(tiny_get(), 0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ema.update(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_outside_0_1_is_refused(decay):
    with pytest.raises(InputError, match="expected an EMA decay"):
        EMA(constant(0.0), decay)
