"""Window training: a share of the batch begins with a rollout that keeps no gradient."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.pairs import Pairs
from get.models import Rollout
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import TrainingStep, build_rollout

from .problems import normal, tiny_get, tiny_vit

CONFIG = TrainConfig(output_dir=Path(), pairs="", window_share=0.25, window_rollout=(3, 12))


def rows(first: int, count: int, share: float) -> list[int]:
    rollout = build_rollout(replace(CONFIG, window_share=share), tiny_get(), first, count, 3)
    return [] if rollout is None else [first + row for row in rollout.rows.tolist()]


@pytest.mark.parametrize(("share", "chosen"), [(0.0, 0), (0.25, 8), (0.34, 10), (0.5, 16), (1, 32)])
def test_the_share_is_spread_over_the_global_batch_however_it_is_cut(share, chosen):
    whole = rows(0, 32, share)
    assert len(whole) == chosen
    for size in (4, 8, 16):
        assert [row for at in range(0, 32, size) for row in rows(at, size, share)] == whole


def test_what_does_not_iterate_has_no_rollout():
    assert build_rollout(CONFIG, tiny_vit(), 0, 8, 3) is None


def test_a_rollout_goes_through_the_iterates_and_keeps_no_gradient():
    model, noise = tiny_get(), normal(4)
    late = Rollout(torch.tensor([1, 3]), 2)
    path = model.trajectory(noise, iterations=3, rollout=late)
    plain = model.trajectory(noise, iterations=5)
    torch.testing.assert_close(path.images[:, [0, 2]], plain.images[:3, [0, 2]])
    torch.testing.assert_close(path.images[:, [1, 3]], plain.images[2:, [1, 3]])

    path.images[:, [1, 3]].square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    start = plain.states[1][[1, 3]].detach()
    model.trajectory(noise[[1, 3]], iterations=3, z0=start).images.square().sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_length_is_drawn_in_every_step_and_micro_steps_change_nothing():
    weights = []
    batch = Pairs(normal(8), normal(8, seed=2), None)
    for micro_steps in (1, 2):
        step = TrainingStep(replace(CONFIG, gradient_accumulation_steps=micro_steps), tiny_get())
        lengths = set()
        for number in range(20):
            rollout = step.rollout(number, 0, 8)
            assert rollout is not None
            lengths.add(rollout.iterations)
        assert min(lengths) >= 3
        assert max(lengths) <= 12
        assert len(lengths) > 5
        step(batch, 0)
        step(batch, 1)
        weights.append([p.detach() for p in step.student.parameters()])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
