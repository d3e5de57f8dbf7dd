"""A whole GET and whole solves, compiled to one graph: the same states and gradients as eager."""

import shutil
import subprocess
import sys

import pytest

INDUCTOR = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
]

# Processes of their own: the type checks that tests switch on cannot be traced.
WHOLE_GET = """
import sys, torch
from get.losses import IterateLoss
from tests.problems import normal, tiny_get

backend, device, tolerance = sys.argv[1], sys.argv[2], float(sys.argv[3])
noise, target = normal(4).to(device), normal(4, seed=2).to(device)
model = tiny_get(iterations=2, equilibrium_depth=int(sys.argv[4])).to(device)
compiled = torch.compile(model, fullgraph=True, backend=backend)
with torch.no_grad():
    near = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(compiled.eval()(noise), model.eval()(noise), **near)

gradients = []
for student in (model, compiled):
    model.train().zero_grad()
    (student(noise) - target).square().mean().backward()
    gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
assert all(g is not None for g in gradients[1].values())
for name, eager in gradients[0].items():  # each in units of its own size: one that is 0 is seen
    assert (gradients[1][name] - eager).norm() <= tolerance * eager.norm() + 1e-9, name
"""

SOLVES = """
import sys, torch
from get.equilibrium import (
    Anderson, Broyden, Phantom, Picard, Reversible, Unrolled, fixed_point
)
w = torch.linspace(-0.4, 0.4, 36, dtype=torch.float64).view(6, 6).requires_grad_()
x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
for solver in (Picard(), Anderson(), Broyden(), Reversible()):
    for gradient in (Unrolled(), Phantom(steps=2)):
        def solve(x):
            return fixed_point(
                lambda z, x: torch.tanh(z @ w.T + x),
                x, inputs=(x,), solver=solver, gradient=gradient, max_steps=4,
            ).z
        torch._dynamo.reset()
        results = []
        for f in (solve, torch.compile(solve, fullgraph=True, backend=sys.argv[1])):
            z = f(x)
            results.append((z, *torch.autograd.grad(z.square().sum(), w)))
        torch.testing.assert_close(results[1], results[0])
"""

# Chained LayerNorms with one table of scales and shifts: inductor of torch 2.10 left parts of the
# table's gradient unwritten, without an error (pytorch#193061).
SHARED_NORMS = """
import sys, torch
import torch.nn.functional as F

def chained(x, table):
    for _ in range(3):
        scale, shift = table.chunk(2)
        x = F.layer_norm(x, (64,)) * (1 + scale) + shift
    return x

torch.manual_seed(0)
x, weight = (torch.randn(8, 16, 64, device=sys.argv[2]) for _ in range(2))
table = (0.1 * torch.randn(128, device=sys.argv[2])).requires_grad_()
compiled = torch.compile(chained, fullgraph=True, backend=sys.argv[1])
eager, ours = (
    torch.autograd.grad((f(x, table) * weight).sum(), table)[0] for f in (chained, compiled)
)
assert (ours - eager).norm() <= float(sys.argv[3]) * eager.norm(), (ours, eager)
"""


def run(code: str, *arguments: object) -> None:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SLOW = [
    pytest.param("aot_eager", marks=pytest.mark.slow),
    pytest.param("inductor", marks=INDUCTOR),
]


@pytest.mark.parametrize("backend", ["eager", *SLOW])
def test_a_whole_get_is_one_graph_with_the_images_and_gradients_of_eager(backend):
    run(WHOLE_GET, backend, "cpu", 1e-4, 1 if backend == "eager" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_every_solver_and_gradient_is_one_graph(backend):
    run(SOLVES, backend)


@pytest.mark.parametrize("backend", SLOW)
def test_norms_that_share_their_weights_have_the_gradient_of_eager(backend):
    run(SHARED_NORMS, backend, "cpu", 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("code", [WHOLE_GET, SHARED_NORMS], ids=["GET", "norms"])
def test_a_gpu_compiles_the_gradients_of_eager(code):
    run(code, "inductor", "cuda", 1e-3, 2)
