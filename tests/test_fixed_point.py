"""What `fixed_point` accepts and refuses, how often it reads from the device, what it copies."""

from collections import Counter, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from get.equilibrium import Anderson, Broyden, Outcome, Picard, Solver, fixed_point

from .problems import as_users_run_it as as_users_run_it
from .problems import contraction, seeded, tanh_layer

SOLVERS = [Picard(), Anderson(), Broyden()]
PAIR = namedtuple("PAIR", "a b")


class Operations(TorchDispatchMode):
    """Counts the operations of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func.overloadpacket)] += 1
        if func.overloadpacket is torch.ops.aten.index:
            self.counts["mask"] += any(x is not None and x.dtype == torch.bool for x in args[1])
        return func(*args, **(kwargs or {}))


def operations(x: Tensor, **options) -> Counter[str]:
    w = contraction(8, 0.9)
    with Operations() as seen:
        fixed_point(lambda z, x: tanh_layer(z, x, w), x, inputs=(x,), **options)
    return seen.counts


def batch(count: int = 6) -> Tensor:
    return torch.randn(count, 8, generator=seeded(1)).double()


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "Best"}, "expected select to be one of .*'best'.*, got 'Best'"),
        ({"max_steps": 3.5}, "expected max_steps >= 1 .* got max_steps 3.5"),
        ({"max_steps": 0}, "expected max_steps >= 1 .* got max_steps 0"),
        ({"check_every": 0}, "check_every >= 1"),
        ({"check_every": 1.5}, "check_every >= 1"),
        ({"atol": -1.0}, "atol >= 0"),
        ({"atol": float("nan")}, "atol >= 0"),
        ({"inputs": torch.ones(2, 3)}, r"expected inputs as a tuple .* got Tensor"),
        ({"inputs": [torch.ones(2, 3)]}, r"expected inputs as a tuple .* got list"),
        ({"inputs": (torch.ones(2, 3), None)}, r"expected inputs as a tuple .*'NoneType'"),
        ({"inputs": (torch.tensor(1.0),), "compact": True}, "expected inputs of batch size 2"),
        ({"inputs": (torch.ones(3, 2),), "compact": True}, "expected inputs of batch size 2"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_arguments_that_mean_nothing_are_refused_in_one_line(options, message):
    arguments: dict[str, Any] = {"max_steps": 4, **options}
    with pytest.raises(ValueError, match=message) as error:
        fixed_point(lambda z, *inputs: z / 2, torch.ones(2, 3), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "z0", [{"a": torch.ones(2, 3)}, PAIR(torch.ones(2, 3), torch.ones(2, 3)), [torch.ones(2, 3)]]
)
@pytest.mark.usefixtures("as_users_run_it")
def test_only_tensors_and_plain_tuples_are_states(z0):
    with pytest.raises(ValueError, match="expected z0 to be a tensor or a plain tuple"):
        fixed_point(lambda z: z, z0, max_steps=1)


def reusing(buffer: Tensor):
    """Return z / 2 + 1 as a map that writes every result into one buffer."""

    def f(z: Tensor) -> Tensor:
        return torch.add(z / 2, 1, out=buffer)

    return f


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_map_that_reuses_its_output_buffer_is_refused_or_does_no_harm(solver):
    z0 = torch.zeros(2, 3)
    right = fixed_point(lambda z: z / 2 + 1, z0, solver=solver, max_steps=5).z
    f = reusing(torch.empty(2, 3))
    if isinstance(solver, Picard):  # its next state is the buffer
        with pytest.raises(ValueError, match="expected f to leave z as it was"):
            fixed_point(f, z0, solver=solver, max_steps=5)
    else:
        assert torch.equal(fixed_point(f, z0, solver=solver, max_steps=5).z, right)


def test_a_map_that_changes_its_argument_is_refused():
    with pytest.raises(ValueError, match="expected f to leave z as it was"):
        fixed_point(lambda z: z.mul_(0.5), torch.ones(2, 3), max_steps=3)
    assert fixed_point(lambda z: z, torch.ones(2, 3), max_steps=3).z.tolist() == [[1] * 3] * 2


def test_inference_mode_and_function_transforms_work():
    w, x = contraction(8, 0.9), batch()
    expected = fixed_point(lambda z: tanh_layer(z, x, w), x, max_steps=5).z
    with torch.inference_mode():
        assert torch.equal(fixed_point(lambda z: tanh_layer(z, x, w), x, max_steps=5).z, expected)
    each = torch.func.vmap(lambda x: fixed_point(lambda z: tanh_layer(z, x, w), x, max_steps=5).z)
    torch.testing.assert_close(each(x[:, None])[:, 0], expected)


# ---------------------------------------------------------------- reads, checks and copies


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("select", ["best", "last", "lowest_residual"])
def test_without_a_tolerance_nothing_is_read_from_the_device(solver, select):
    counts = operations(batch(), solver=solver, max_steps=12, select=select)
    assert counts["aten._local_scalar_dense"] == 0


def test_residuals_are_measured_in_every_kth_step_only_and_the_device_is_read_then():
    for every, checks in ((1, 12), (4, 3), (5, 3), (99, 1)):
        counts = operations(batch(), max_steps=12, tol=1e-14, check_every=every)
        assert counts["aten._local_scalar_dense"] == checks
        assert counts["aten.linalg_vector_norm"] == 2 * checks


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("select", ["best", "last"])
def test_checking_less_often_gives_the_same_answer_a_few_evaluations_later(solver, compact, select):
    w, x, calls = contraction(8, 0.8), batch(), []

    def f(z: Tensor, x: Tensor) -> Tensor:
        calls.append(len(z))
        return tanh_layer(z, x, w)

    def solve(every: int):
        calls.clear()
        return fixed_point(
            f,
            x,
            inputs=(x,),
            solver=solver,
            max_steps=102,
            tol=1e-9,
            check_every=every,
            compact=compact,
            select=select,
        )

    one, four = solve(1), solve(4)
    assert len(calls) == four.evaluations.max()
    assert not compact or sum(calls) == four.evaluations.sum()
    assert four.outcome.tolist() == [Outcome.CONVERGED] * len(x)
    assert (four.evaluations % 4 == 0).all()
    late = four.evaluations - one.evaluations
    assert ((late >= 0) & (late < 4)).all()
    assert len(four.trace) == len(calls) // 4
    assert four.trace[-1].nan_to_num(0).max() <= 1e-9
    torch.testing.assert_close(four.z, one.z, rtol=1e-7, atol=1e-8)


def test_the_last_step_is_always_measured():
    solution = fixed_point(lambda z: z / 2 + 1, torch.zeros(1, 1), max_steps=10, check_every=4)
    assert len(solution.trace) == 3
    assert solution.evaluations.tolist() == [10]
    solution = fixed_point(
        lambda z: z / 2 + 1, torch.zeros(1, 1), max_steps=10, tol=2e-3, check_every=4
    )
    assert (solution.evaluations.tolist(), solution.outcome.tolist()) == ([10], [0])


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_removing_samples_copies_each_tensor_once_by_index(solver: Solver):
    counts = operations(
        torch.cat([batch(1) * 0, batch(1)]), solver=solver, max_steps=60, tol=1e-6, compact=True
    )
    assert counts["mask"] == 0  # its result has a size that only the device knows
    # One sample leaves before the other: seven fields for it, seven fields, the input and the
    # solver's memory for the rest, and five columns of the result.
    memory = {"Picard": 0, "Anderson": 4, "Broyden": 3}[type(solver).__name__]
    assert counts["aten.index_select"] == 7 + 7 + 1 + memory + 5


@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=str)
def test_a_differentiated_solver_makes_no_tensor_from_numbers_of_the_host(solver):
    counts = operations(batch().requires_grad_(), solver=solver, max_steps=9)
    assert not [name for name in counts if "lift" in name or "_to_copy" in name]
