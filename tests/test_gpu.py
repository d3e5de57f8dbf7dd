"""What only a GPU can show: the numbers of a CPU, a resumed run's bits, CUDA graphs, NCCL.

The device is a parameter, so that a CPU rehearses the tests.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.pairs import Pairs
from get.losses import IterateLoss
from get.models import GET
from get.pipeline_get import GETPipeline
from pipeline.jobs.checkpoints import Progress, latest, load_checkpoint, save_checkpoint
from pipeline.jobs.host_copy import HostCopy
from pipeline.jobs.processes import Highest
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import TrainingStep

from .problems import normal, tiny_get
from .processes import ROOT
from .runs import SMALL, STEPS, metrics

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
FEW = {"max_train_steps": 100, "global_batch_size": 8, "pairs": "", "lr_warmup_steps": 2}


def student(device: str, dtype: torch.dtype = torch.float32) -> GET:
    model = tiny_get(num_classes=4)
    torch.nn.Module.to(model, device, dtype)
    return model


def batch(number: int, device: str) -> Pairs:
    pairs = Pairs(normal(8, seed=number), normal(8, seed=99 + number), torch.arange(8) % 4)
    return pairs.to(torch.device(device))


def gradients(device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = student(device, dtype)
    pairs = batch(0, device)
    noise, images = pairs.noise.to(dtype), pairs.images.to(dtype)
    IterateLoss(model)(noise, pairs.labels, images).iterates.sum().backward()
    return {n: p.grad.cpu().double() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def _exact(monkeypatch: pytest.MonkeyPatch):
    """Compute in float32, in the same order each time."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_gradients_are_those_of_float64_on_a_cpu(device):
    with sdpa_kernel(SDPBackend.MATH):
        expected, found = gradients("cpu", torch.float64), gradients(device, torch.float32)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_run_that_is_resumed_ends_with_the_same_bits(device, tmp_path):
    config = TrainConfig(
        output_dir=tmp_path, optimizer="muon", window_share=0.5, ema_ramp=0.05, **FEW
    )

    def step() -> TrainingStep:
        return TrainingStep(config, student(device))

    def make(step: TrainingStep, numbers: range) -> None:
        with sdpa_kernel(SDPBackend.MATH):
            for number in numbers:
                step(batch(number, device), number)

    whole, first, second = step(), step(), step()
    make(whole, range(4))
    make(first, range(2))
    copy = HostCopy(first.updates.state)
    copy.take()
    make(first, range(2, 3))  # goes on while the copy is written
    save_checkpoint(config, copy, Progress(2), lambda f, m: GETPipeline(m).save_pretrained(f))
    newest = latest(tmp_path)
    assert newest is not None
    assert load_checkpoint(newest, second.updates.state).step == 2
    make(second, range(2, 4))
    ends = [s.updates.state.tensors() for s in (whole, second)]
    assert ends[0].keys() == ends[1].keys()
    assert [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])] == []


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_in_bf16_every_attention_can_be_the_flash_kernel(device):
    pairs = batch(0, device)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast(device, torch.bfloat16):
        losses = IterateLoss(student(device))(pairs.noise, pairs.labels, pairs.images)
    losses.total(1.0).backward()


@pytest.fixture
def _alone(device):
    """A group of one process."""
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_step_waits_for_nothing_and_neither_does_a_question_to_other_processes(device):
    config = TrainConfig(
        output_dir=Path(), optimizer="muon", window_share=0.5, ema_ramp=0.05, **FEW
    )
    step, signal = TrainingStep(config, student(device)), Highest(torch.device(device))
    for number in range(2):
        if number == 1 and device == "cuda":  # what is kept was made in the first step
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(batch(number, "cpu").to(torch.device(device)), number)
            signal.ask(15)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert signal.answer() == 15


def losses(config: TrainConfig, device: str) -> list[float]:
    step = TrainingStep(config, student(device))
    return [float(step(batch(number % 2, device), number)["total"]) for number in range(8)]


def main(device: str) -> None:
    """Make the steps of which the test below compares the losses."""
    usual = TrainConfig(output_dir=Path(), gradient_accumulation_steps=2, **FEW)
    ways = usual, replace(usual, compile=True), replace(usual, compile=True, cuda_graphs=True)
    sys.stdout.write(json.dumps([losses(config, device) for config in ways]))


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
def test_compiled_steps_and_cuda_graphs_have_the_losses_of_eager_ones(device):
    # a process of its own: the type checks that tests switch on cannot be traced
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_gpu", device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    eager, compiled, graphs = json.loads(done.stdout.splitlines()[-1])
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert graphs == pytest.approx(eager, rel=1e-3)
    assert eager[-1] < eager[0]


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
def test_one_process_of_torchrun_trains_as_one_alone(device, pairs, tmp_path):
    """On a GPU it uses NCCL."""
    ends = []
    variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    variables |= {"ACCELERATE_USE_CPU": "1"} if device == "cpu" else {}
    launchers = [], ["torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m"]
    for name, launcher in zip(("alone", "torchrun"), launchers, strict=True):
        run = tmp_path / name
        settings = *SMALL, "--pairs", pairs, "--output_dir", run, "--log_steps", 1
        command = [sys.executable, "-m", *launcher, "pipeline.train", "smoke", *map(str, settings)]
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        ends.append([line["loss"] for line in metrics(run) if "loss" in line])
    assert len(ends[0]) == STEPS
    assert ends[1] == pytest.approx(ends[0], rel=0.02)  # TF32, and sums in another order


if __name__ == "__main__":
    main(sys.argv[1])
