"""Compiled students have the losses, gradients and key names of eager ones."""

import shutil
import subprocess
import sys

import pytest
import torch

from get.equilibrium import Implicit, Phantom, Unrolled, fixed_point
from get.errors import InputError
from get.losses import IterateLoss
from pipeline.recipes.settings_train import TrainConfig

from .problems import contraction, tanh_layer, tiny_get, tiny_vit

# A process of its own: the type checks that tests switch on cannot be traced.
STEP = """
import sys, torch
from get.losses import IterateLoss
from tests.problems import normal, tiny_get

students, target, results = [tiny_get(iterations=2) for _ in "ab"], normal(4, seed=2), []
for student in students:
    if sys.argv[2] == "checkpointed":
        student.enable_gradient_checkpointing()
    objective = IterateLoss(student)
    if student is students[1]:
        objective.compile_path() if sys.argv[1] == "whole" else student.compile_parts()
    loss = objective(normal(4), None, target).total(0.5)
    loss.backward()
    results.append([loss, *(p.grad for p in student.parameters() if p.requires_grad)])
for eager, compiled in zip(*results, strict=True):
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.parametrize("build", [tiny_get, tiny_vit])
def test_compiled_weights_keep_their_names(build):
    student = build()
    names = list(student.state_dict())
    student.compile_parts()
    IterateLoss(student).compile_path()
    assert list(student.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["kept", "checkpointed"])
@pytest.mark.parametrize("form", ["whole", "parts"])
def test_a_compiled_step_has_the_losses_and_gradients_of_an_eager_one(form, memory):
    done = subprocess.run(
        [sys.executable, "-c", STEP, form, memory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_jacobian_penalty_is_refused_with_compiled_blocks(tmp_path):
    with pytest.raises(InputError, match="no jacobian_weight with compile"):
        TrainConfig(output_dir=tmp_path, pairs=tmp_path, compile=True, jacobian_weight=1.0)


COMPILERS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
            # dynamo's and inductor's own look-ups
            pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
        ],
    ),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own look-up
@pytest.mark.parametrize(
    "gradient", [Unrolled(), Implicit(tol=1e-13, max_steps=400), Phantom()], ids=str
)
@pytest.mark.parametrize("backend", COMPILERS)
def test_a_compiled_block_works_with_every_gradient(gradient, backend):
    with torch._dynamo.config.patch(suppress_errors=False):
        compiled = torch.compile(tanh_layer, backend=backend, dynamic=True)
        x, w = torch.ones(2, 6).double(), contraction(6, 0.8).requires_grad_()
        gradients = []
        for f in (tanh_layer, compiled):
            z = fixed_point(
                lambda z, x, f=f: f(z, x, w), x, inputs=(x,), gradient=gradient, max_steps=9
            ).z
            gradients.append(torch.autograd.grad(z.sum(), w)[0])
    torch.testing.assert_close(*gradients)
