"""A whole GET and whole solves, compiled to one graph: the same states and gradients as eager."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from get.equilibrium import Anderson, Broyden, Phantom, Picard, Reversible, Unrolled, fixed_point

from .problems import normal, tiny_get
from .processes import ROOT, Script, completed

INDUCTOR = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
]


def whole_get(backend: str, device: str, tolerance: str, depth: str) -> None:
    near = float(tolerance)
    noise, target = normal(4).to(device), normal(4, seed=2).to(device)
    model = tiny_get(iterations=2, equilibrium_depth=int(depth))
    torch.nn.Module.to(model, device)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(compiled(noise), model(noise), rtol=near, atol=near)
    model.train()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = [(student(noise) - target).square().mean() for student in (model, compiled)]
    gradients = [torch.autograd.grad(loss, [*weights.values()]) for loss in losses]
    for name, eager, ours in zip(weights, *gradients, strict=True):
        # each in units of its own size: one that is 0 is seen
        assert (ours - eager).norm() <= near * eager.norm() + 1e-9, name


def solves(backend: str) -> None:
    w = torch.linspace(-0.4, 0.4, 36, dtype=torch.float64).view(6, 6).requires_grad_()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
    for solver in (Picard(), Anderson(), Broyden(), Reversible()):
        for gradient in (Unrolled(), Phantom(steps=2)):

            def solve(x: Tensor, solver=solver, gradient=gradient) -> Tensor:
                return fixed_point(
                    lambda z, x: torch.tanh(z @ w.T + x),
                    x, inputs=(x,), solver=solver, gradient=gradient, max_steps=4,
                ).z  # fmt: skip

            torch._dynamo.reset()
            results = []
            for f in (solve, torch.compile(solve, fullgraph=True, backend=backend)):
                end = f(x)
                results.append((end, *torch.autograd.grad(end.square().sum(), w)))
            torch.testing.assert_close(results[1], results[0])


def shared_norms(backend: str, device: str, tolerance: str) -> None:
    """Chain LayerNorms with one table of scales and shifts.

    Inductor of torch 2.10 left parts of the table's gradient unwritten, without an error
    (pytorch#193061).
    """

    def chained(x: Tensor, table: Tensor) -> Tensor:
        for _ in range(3):
            scale, shift = table.chunk(2)
            x = F.layer_norm(x, (64,)) * (1 + scale) + shift
        return x

    torch.manual_seed(0)
    x, weight = (torch.randn(8, 16, 64, device=device) for _ in range(2))
    table = (0.1 * torch.randn(128, device=device)).requires_grad_()
    compiled = torch.compile(chained, fullgraph=True, backend=backend)
    eager, ours = (
        torch.autograd.grad((f(x, table) * weight).sum(), table)[0] for f in (chained, compiled)
    )
    assert (ours - eager).norm() <= float(tolerance) * eager.norm(), (ours, eager)


CASES = {"whole_get": whole_get, "solves": solves, "shared_norms": shared_norms}


def run(*arguments: object) -> None:
    """Be traced in a new process: the type checks that tests switch on cannot be traced."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_compile_whole"]
    command += [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SLOW = [
    pytest.param("aot_eager", marks=pytest.mark.slow),
    pytest.param("inductor", marks=INDUCTOR),
]


def test_a_whole_get_is_one_graph_with_the_images_and_gradients_of_eager(script: Script):
    completed(script("tests.test_compile_whole", "whole_get", "eager", "cpu", 1e-4, 1))


@pytest.mark.parametrize("backend", SLOW)
def test_a_whole_get_compiles_to_the_images_and_gradients_of_eager(backend):
    run("whole_get", backend, "cpu", 1e-4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_every_solver_and_gradient_is_one_graph(backend):
    run("solves", backend)


@pytest.mark.parametrize("backend", SLOW)
def test_norms_that_share_their_weights_have_the_gradient_of_eager(backend):
    run("shared_norms", backend, "cpu", 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [("whole_get", 2), ("shared_norms",)], ids=["GET", "norms"])
def test_a_gpu_compiles_the_gradients_of_eager(case):
    name, *depth = case
    run(name, "inductor", "cuda", 1e-3, *depth)


if __name__ == "__main__":
    CASES[sys.argv[1]](*sys.argv[2:])
