"""Every way of differentiating under DistributedDataParallel: two processes make one gradient."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data.pairs import Pairs
from get.equilibrium import Implicit, Phantom
from get.losses import IterateLoss
from get.models import Equilibrium
from get.muon import Muon
from pipeline.jobs.processes import PATIENCE, Highest, together
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import all_moments
from pipeline.training.step import TrainingStep

from .problems import normal, tiny_get
from .processes import Script, completed
from .test_graphs import Counter

MODES = {
    "unrolled": None,
    "phantom": Equilibrium(gradient=Phantom(steps=2, damping=1.0), max_steps=30, tol=1e-8),
    "implicit": Equilibrium(gradient=Implicit(tol=1e-10), max_steps=30, tol=1e-8),
}


VECTORS = normal(8).flatten(1)[:, :3] + 10


def gradients(mode: str, accelerator: Accelerator | None = None) -> dict[str, Tensor]:
    """Return the gradient of a step over four images, of which this process has its share."""
    model = tiny_get(num_classes=4).double()
    module = IterateLoss(model, iterations=2, equilibrium=MODES[mode])
    wrapped, rank, processes = module, 0, 1
    if accelerator is not None:
        wrapped = accelerator.prepare(module)
        rank, processes = accelerator.process_index, accelerator.num_processes
        check_settings(wrapped)
    mine = slice(rank * 4 // processes, (rank + 1) * 4 // processes)
    labels = torch.arange(4)[mine]
    noise, target = normal(4).double()[mine], normal(4, seed=2).double()[mine]
    wrapped(noise, labels, target).iterates.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    memory = {p.grad.untyped_storage().data_ptr() for p in trained if p.grad is not None}
    assert len(memory) == (1 if processes > 1 else len(trained))  # views of one bucket
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def trained(accelerator: Accelerator | None = None) -> dict[str, Tensor]:
    """Return the weights after four steps of two micro-steps; several processes compile theirs.

    The gradients fill more than one of DDP's buckets, at the end of which it would cut the graph.
    """
    several = accelerator is not None
    rank, processes = (accelerator.process_index, accelerator.num_processes) if several else (0, 1)
    config = TrainConfig(
        output_dir=Path("x"), pairs="", optimizer="muon", global_batch_size=8, max_train_steps=9,
        window_share=0.5, window_rollout=(2, 2), gradient_accumulation_steps=2,
        compile=several, cuda_graphs=several,
    )  # fmt: skip
    student = tiny_get(num_classes=4, width=128, iterations=2, equilibrium_depth=1)
    step, counter = TrainingStep(config, student, accelerator), Counter()
    muon = step.updates.optimizers["muon"]
    assert isinstance(muon, Muon)
    assert (muon.processes is not None) == several  # they share its work out
    mine = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    places = set()
    with torch.compiler.set_stance("default", force_backend=counter):
        for number in range(4):
            pairs = Pairs(normal(8, seed=number), normal(8, seed=9 + number), torch.arange(8) % 4)
            step(pairs.take(mine), number)
            if number >= 2:  # DDP makes its buckets anew after the first step
                grads = [p.grad for p in step.updates.parameters]
                places |= {g.data_ptr() for g in grads if g is not None}
    assert counter.graphs == (1 if several else 0)
    # CUDA graphs need gradients that stay where they are: in DDP's buckets
    assert len(places) == (len(step.updates.parameters) if several else 0)
    return dict(step.student.state_dict())


def check_settings(wrapped: torch.nn.Module) -> None:
    assert isinstance(wrapped, DistributedDataParallel)
    assert wrapped.gradient_as_bucket_view
    assert not list(wrapped.buffers())  # or DDP would send them around in every step
    group = dist.group.WORLD
    assert group is not None
    backend = group._get_backend(torch.device("cpu"))
    assert backend.options._timeout == PATIENCE


def moved(processes: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Return five matrices, two of them alike, after two steps of Muon."""
    shapes = (6, 4), (6, 4), (4, 8), (9, 3), (6, 4)
    parameters = [torch.nn.Parameter(normal(1, seed=i).flatten()[: a * b].view(a, b))
                  for i, (a, b) in enumerate(shapes)]  # fmt: skip
    optimizer = Muon(parameters, 0.1, processes=processes)
    for _ in range(2):
        for p in parameters:
            p.grad = p.detach().sin()
        optimizer.step()
    return {str(i): p.detach() for i, p in enumerate(parameters)}


def moments(first: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """Return mean and covariance of vectors, `first` of which the first process has."""
    own = VECTORS[:first] if accelerator.is_main_process else VECTORS[first:]
    found = all_moments([own[:0], *own.split(2)], accelerator)
    return dict(zip(("mean", "covariance"), found, strict=True))


def check_questions(accelerator: Accelerator) -> None:
    """The highest number of both processes is known when they ask again."""
    highest, answers = Highest(accelerator.device), []
    for number in (3, 15 * accelerator.process_index, 0, 0):
        answers.append(highest.answer())
        highest.ask(number)
    assert answers == [0, 3, 15, 0]


def main(folder: Path) -> None:
    """Be one of two processes."""
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=together())
    rank = accelerator.process_index
    check_questions(accelerator)
    save_file(moved(dist.group.WORLD), folder / f"muon-{rank}.safetensors")
    for mode in MODES:
        save_file(gradients(mode, accelerator), folder / f"{mode}-{rank}.safetensors")
    for first in (5, 8):
        save_file(moments(first, accelerator), folder / f"moments-{first}-{rank}.safetensors")
    save_file(trained(accelerator), folder / f"trained-{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_make_the_gradient_of_one_whatever_the_mode(tmp_path: Path, script: Script):
    completed(script("tests.test_ddp", tmp_path, processes=2))
    for mode in MODES:
        alone = gradients(mode)
        for rank in (0, 1):
            together = load_file(tmp_path / f"{mode}-{rank}.safetensors")
            torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-12)
    first, second = (load_file(tmp_path / f"muon-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(first, moved(None), rtol=0, atol=1e-6)
    expected = {"mean": VECTORS.double().mean(0)}
    expected["covariance"] = torch.cov(VECTORS.double().T, correction=0)
    for name in ("5-0", "5-1", "8-0", "8-1"):
        found = load_file(tmp_path / f"moments-{name}.safetensors")
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    alone, near = trained(), {"rtol": 0, "atol": 2e-5}
    first, second = (load_file(tmp_path / f"trained-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    biases = [name for name in alone if "qkv.bias" in name]  # keys': rounding, of which AdamW
    for weights in (first, alone):  # makes a step
        for name in biases:
            del weights[name]
    torch.testing.assert_close(first, alone, **near)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
