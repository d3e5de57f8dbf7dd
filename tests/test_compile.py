"""Compiled blocks: the same losses, gradients and key names as without."""

import subprocess
import sys

import pytest

from get.errors import InputError
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import compile_blocks

from .problems import tiny_get, tiny_vit

# A process of its own: the type checks that tests switch on cannot be traced.
STEP = """
import sys, torch
from get.losses import IterateLoss
from pipeline.training.build import compile_blocks
from tests.problems import normal, tiny_get

students, target, found = (tiny_get(), tiny_get()), normal(4, seed=2), []
compile_blocks(students[1])
for student in students:
    if sys.argv[1] == "checkpointed":
        student.enable_gradient_checkpointing()
    loss = IterateLoss(student)(normal(4), None, target).total(0.5)
    loss.backward()
    found.append([loss, *(p.grad for p in student.parameters() if p.requires_grad)])
for eager, compiled in zip(*found, strict=True):
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.parametrize("build", [tiny_get, tiny_vit])
def test_compiled_weights_keep_their_names(build):
    student = build()
    names = list(student.state_dict())
    compile_blocks(student)
    assert list(student.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["kept", "checkpointed"])
def test_a_compiled_step_has_the_losses_and_gradients_of_an_eager_one(memory):
    done = subprocess.run(
        [sys.executable, "-c", STEP, memory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_jacobian_penalty_is_refused_with_compiled_blocks(tmp_path):
    with pytest.raises(InputError, match="cannot be differentiated twice"):
        TrainConfig(output_dir=tmp_path, pairs=tmp_path, compile=True, jacobian_weight=1.0)
