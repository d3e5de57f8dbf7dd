"""A training step on a GPU neither reads from it nor copies to it: fake CUDA tensors show it.

Backward passes need a real GPU; what they run is what the forward pass recorded. A read of a value
fails under torch's fake tensors by itself.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.pairs import Pairs
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import students
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_student
from pipeline.training.step import TrainingStep

from .problems import as_users_run_it as as_users_run_it


class Crossings(TorchDispatchMode):
    """Notes the operations whose tensors are on two kinds of devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device.type for x in tensors if x.dim()}) > 1:
            self.found.append(str(func))
        return result


def without_frechet(config: TrainConfig) -> TrainConfig:
    return replace(config, frechet_weight=0.0, feature_network=None, real_images=None)


def test_what_the_mode_notes() -> None:
    with FakeTensorMode(), Crossings() as crossings:
        torch.ones(3, device="cuda") * 2
        assert not crossings.found
        torch.ones(3).to("cuda")
    assert crossings.found == ["aten._to_copy.default"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_copies_nothing_between_host_and_device(precision, optimizer):
    config = without_frechet(students(RECIPES)["digits"])
    config = replace(config, mixed_precision=precision, optimizer=optimizer)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            student = build_student(config, RECIPES["digits"].manifest())
            noise, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
        step, batch = TrainingStep(config, student), Pairs(noise, noise, labels)
        step.rollout(0, 0, 8)  # kept from here on
        with Crossings() as crossings:
            for number in range(2):
                rollout = step.rollout(number, 0, 8)
                losses = step.losses(batch, None, rollout=rollout)
                losses.total(config.iterate_decay)
                for p in student.parameters():
                    p.grad = torch.zeros_like(p) if p.requires_grad else None
                step.updates()
    assert not crossings.found
