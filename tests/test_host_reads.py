"""A training step on a GPU neither reads from it nor copies to it; a solve reads where it checks.

Fake CUDA tensors show the forward pass and the optimisers. Backward passes need a device that is
there: tensors without data ("meta") stand for it. A read of a value fails in both by itself, and
where it is allowed, in a solve, true tensors count it.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.pairs import Pairs
from get import sampling
from get.cost import Macs
from get.equilibrium import Anderson, Implicit, Phantom, Picard, fixed_point
from get.frechet import FrechetLoss
from get.losses import IterateLoss
from get.models import Equilibrium, Rollout
from get.muon import Muon
from get.sampling import generate
from pipeline.jobs.processes import Highest
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import students
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_objective, build_student
from pipeline.training.step import TrainingStep

from .problems import as_users_run_it as as_users_run_it
from .problems import contraction, tanh_layer, tiny_get

READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select")


class Crossings(TorchDispatchMode):
    """Notes operations whose tensors are on two kinds of devices, reads of values, and products."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.reads: list[str] = []
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device.type for x in tensors if x.dim()}) > 1:
            waits = "" if (kwargs or {}).get("non_blocking") else ", waiting"
            self.found.append(f"{func}{waits}")
        by_mask = "index" in str(func) and any(x.dtype == torch.bool for x in tensors)
        if by_mask or func.overloadpacket.__name__ in READS:
            self.reads.append(str(func))
        if func.overloadpacket.__name__ in ("mm", "bmm"):
            self.products.add(result.dtype)
        return result


def without_frechet(config: TrainConfig) -> TrainConfig:
    return replace(config, frechet_weight=0.0, feature_network=None, real_images=None)


def features(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :5]


def test_what_the_mode_notes() -> None:
    with FakeTensorMode(), Crossings() as crossings:
        torch.ones(3, device="cuda") * 2
        assert not crossings.found
        torch.ones(3).to("cuda")
    assert crossings.found == ["aten._to_copy.default, waiting"]
    with Crossings() as crossings:
        x = torch.ones(3)
        assert bool((x > 0).all())
        assert x.sum().item() == 3
        x[x > 0] += 1
    assert len(crossings.reads) >= 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_copies_nothing_between_host_and_device(precision, optimizer):
    config = students(RECIPES)["digits"]
    config = replace(config, mixed_precision=precision, optimizer=optimizer)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            student = build_student(config, RECIPES["digits"].manifest())
            noise, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
            frechet = FrechetLoss(features, torch.zeros(5), torch.eye(5))
        objective = build_objective(config, student, frechet)
        step, batch = (
            TrainingStep(config, student, objective=objective),
            Pairs(noise, noise, labels),
        )
        step.rollout(0, 0, 8)  # kept from here on
        with Crossings() as crossings:
            for number, weight in enumerate((None, None, 0.0)):  # the last one collects moments
                rollout = step.rollout(number, 0, 8)
                losses = step.losses(batch, None, rollout=rollout, frechet_weight=weight)
                losses.total(config.iterate_decay)
                if weight is not None:
                    frechet.update(0.5)
                for p in student.parameters():
                    p.grad = torch.zeros_like(p) if p.requires_grad else None
                step.updates()
    assert crossings.found == crossings.reads == []


WHOLE: dict[str, dict[str, Any]] = {
    "published": {"iterate_decay": 0.8, "max_grad_norm": None},
    "ours": {"optimizer": "muon", "window_share": 0.5, "ema_ramp": 0.05},
    "much": {"gradient_accumulation_steps": 2, "ema_sigma_rel": (0.1,), "lr_scheduler": "linear"},
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_step_reads_no_value(name, tmp_path):
    """Of true tensors: from the random start of the iteration to the averages and the figures."""
    config = TrainConfig(output_dir=tmp_path, pairs="", global_batch_size=4, **WHOLE[name])
    step = TrainingStep(config, tiny_get(z0="normal" if name == "published" else "injection"))
    noise = torch.randn(4, 3, 8, 8)
    step(Pairs(noise, noise, None), 0)  # what is kept from here on
    with Crossings() as crossings:
        figures = step(Pairs(noise, noise, None), 1)
        assert crossings.reads == []
        assert all(not value.requires_grad for value in figures.values())


SOLVE = {"solver": Anderson(), "max_steps": 4, "tol": 0.0}
ENDS = {
    "unrolled": None,
    "phantom": Equilibrium(gradient=Phantom(steps=2), **SOLVE),
    "implicit": Equilibrium(gradient=Implicit(**SOLVE), **SOLVE),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("kept", ["kept", "recomputed"])
@pytest.mark.parametrize("gradient", ENDS)
def test_a_backward_pass_copies_nothing_between_host_and_device(gradient, kept):
    with torch.device("meta"):
        student = tiny_get(num_classes=3)
        student.gradient_checkpointing = kept == "recomputed"
        noise, labels = torch.empty(4, 3, 8, 8), torch.empty(4, dtype=torch.int64)
        frechet = FrechetLoss(features, torch.empty(5), torch.empty(5, 5))
        rollout = Rollout(torch.empty(2, dtype=torch.int64), 3)
        draws = 1 if kept == "kept" else 0  # of the Jacobian penalty
    objective = IterateLoss(student, equilibrium=ENDS[gradient], frechet=frechet)
    muon = Muon([p for p in student.equilibrium_blocks.parameters() if p.ndim == 2])
    with Crossings() as crossings:
        losses = objective(noise, labels, noise, None, draws, None, rollout, 1.0)
        losses.total(0.5, penalty_weight=1.0, frechet_weight=1.0).backward()
        muon.step()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert not crossings.found
    assert not crossings.reads  # but torch.linalg.eigvalsh, inside, asks whether it has found them


@pytest.fixture
def _one_of_eight():
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=8)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_one_of_eight")
def test_muon_shared_by_processes_has_less_work_and_copies_nothing_between_host_and_device():
    macs = []
    for count, processes in ((1, None), (3, dist.group.WORLD)):  # this one has one of the three
        with FakeTensorMode(), torch.device("cuda"):
            weights = [torch.zeros(8, 4, requires_grad=True) for _ in range(count)]
            muon = Muon(weights, processes=processes)
            for w in weights:
                w.grad = torch.zeros_like(w)
            with Crossings() as crossings, Macs() as work:
                muon.step()
        macs.append(work.total)
        assert not crossings.found
        assert crossings.products == {torch.bfloat16}
    assert macs[0] == macs[1] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_one_of_eight")
def test_processes_ask_each_other_for_a_signal_without_waiting_for_their_gpus():
    with FakeTensorMode(), Crossings() as crossings:
        Highest(torch.device("cuda")).ask(15)
    assert crossings.found == ["aten._to_copy.default"]


@pytest.mark.usefixtures("as_users_run_it")
def test_validation_copies_noise_and_labels_to_the_device_and_images_back(monkeypatch):
    monkeypatch.setattr(sampling, "check_labels", lambda *_: None)  # fake labels have no values
    with FakeTensorMode():
        with torch.device("cuda"):
            student = tiny_get(num_classes=3)
        noise, labels = torch.randn(10, 3, 8, 8), torch.zeros(10, dtype=torch.int64)
        with Crossings() as crossings:
            generate(student, noise, labels, seed=0, indices=range(10), batch_size=4)
    assert crossings.found == 3 * 3 * ["aten._to_copy.default, waiting"]  # in each of three batches


@pytest.mark.parametrize("gradient", [Phantom(), Implicit()], ids=str)
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=str)
@pytest.mark.parametrize("every", [1, 4])
def test_a_solve_reads_only_where_it_checks(gradient, solver, every):
    steps, seen = 12, []
    w, x = contraction(6, 0.9).requires_grad_(), torch.ones(3, 6).double()

    def f(z: Tensor, x: Tensor) -> Tensor:
        seen.append(len(crossings.reads))
        return tanh_layer(z, x, w)

    with Crossings() as crossings:
        fixed_point(
            f, x, inputs=(x,), gradient=gradient, solver=solver,
            max_steps=steps, tol=1e-12, check_every=every, compact=True,
        )  # fmt: skip
    before = [0, *seen[1:steps], len(crossings.reads)]  # at the end of each step
    at = [k for k in range(1, steps) if seen[k] > seen[k - 1]]
    assert at == [k for k in range(1, steps) if k % every == 0]
    assert before[-1] - before[-2] <= 2
