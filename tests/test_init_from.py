"""Training starts from a converted checkpoint of locuslab/get, as if it had never stopped there."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from get.ema import EMA
from get.losses import IterateLoss, geometric_weights
from get.models import GET
from pipeline.jobs.state import start_from

from .locuslab_files import OFFICIAL, locuslab_state, old_pairs
from .locuslab_files import _nothing_was_executed as _nothing_was_executed
from .locuslab_files import convert as convert
from .processes import Result, Script


def locuslab_model() -> GET:
    """Return a small GET as locuslab/get has one, with weights that are not zero."""
    torch.manual_seed(3)
    model = GET(
        image_size=8, channels=3, width=32, depth=1, equilibrium_depth=2, heads=2,
        equilibrium_mlp_ratio=4.0, iterations=6, z0="normal", map="plain",
    )  # fmt: skip
    torch.nn.init.normal_(model.decode.linear.weight, std=0.1)
    return model


def steps(model: GET, ema: EMA, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Train as locuslab/get does, with random numbers of the step."""
    for step in numbers:
        generator = torch.Generator().manual_seed(step)
        noise, target = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
        z0 = torch.randn(2, 16, 32, generator=generator)
        losses = IterateLoss(model)(noise, None, target, z0).iterates
        loss = (geometric_weights(6, 0.8) * losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)


def interrupted_training(path: Path) -> tuple[GET, EMA]:
    """Train three steps, leave a checkpoint like that of locuslab/get, train three more."""
    model = locuslab_model()
    everything = [model.get_parameter(n) for n in model.state_dict()]  # position first, frozen
    optimizer = torch.optim.AdamW(everything, lr=1e-3, weight_decay=0)
    ema = EMA(model, 0.9)
    steps(model, ema, optimizer, range(3))
    assert min(optimizer.state_dict()["state"]) == 1
    torch.save(
        {
            "args": argparse.Namespace(**OFFICIAL),
            "model": locuslab_state(model),
            "ema": locuslab_state(ema.model),
            "opt": optimizer.state_dict(),
        },
        path,
    )
    steps(model, ema, optimizer, range(3, 6))
    return model, ema


def test_training_goes_on_from_a_converted_checkpoint_as_if_never_stopped(tmp_path: Path, convert):
    expected, average = interrupted_training(tmp_path / "x.pth")
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2)
    assert "with the optimiser" in result.out, result.err
    model = locuslab_model()
    ema = EMA(model, 0.9)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)
    line = start_from(tmp_path / "out", model, ema.model, {"optimizer": optimizer})
    assert line == (
        "starting from the weights and their average and the optimiser's moments "
        f"in {tmp_path / 'out'}"
    )
    steps(model, ema, optimizer, range(3, 6))
    for ours, theirs in ((model, expected), (ema.model, average.model)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


@pytest.fixture
def imported(tmp_path: Path, convert) -> Path:
    """A converted checkpoint, and next to it pairs to train it on."""
    interrupted_training(tmp_path / "x.pth")
    assert convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "model", "--heads", 2).code == 0
    old_pairs(tmp_path / "old", {"1.pkl": 20}, classes=None)
    given = "get_pairs", tmp_path / "old", tmp_path / "pairs", "--pairs_per_shard", 4
    assert convert(*given).code == 0
    return tmp_path / "model"


@pytest.fixture
def fit(imported: Path, script: Script) -> Callable[..., Result]:
    """Return a function that trains two steps from the converted checkpoint."""
    shape = "--model.width", 32, "--model.depth", 1, "--model.equilibrium_depth", 2
    shape = *shape, "--model.coda_depth", 0
    flags = (
        "smoke", "--pairs", imported.with_name("pairs"), "--output_dir", imported.with_name("run"),
        "--streams", 4, "--global_batch_size", 4, "--max_train_steps", 2, *shape,
        "--optimizer", "adamw",
    )  # fmt: skip

    return lambda *arguments: script("pipeline.train", *flags, *arguments)


def test_train_begins_with_an_imported_model_and_a_second_call_does_not_look_at_it(
    imported: Path, fit
):
    policy = "--model.map", "plain", "--model.z0", "normal", "--model.iterations", 6
    given = "--init_from", imported, *policy, "--learning_rate", 1e-12
    first = fit(*given)
    assert first.code == 0, first.err
    assert f"the optimiser's moments in {imported}\n" in first.out
    saved = imported.with_name("run") / "checkpoints" / "checkpoint-2" / "state"
    for name in ("model", "ema"):
        before = load_file(imported / "state" / f"{name}.safetensors")
        after = load_file(saved / f"{name}.safetensors")
        for key, value in before.items():
            torch.testing.assert_close(
                after[key], value, rtol=0, atol=1e-2 if name == "ema" else 1e-6
            )
    assert load_file(saved / "optimizer.safetensors")["0.step"] == 5  # 3 there and 2 here
    for path in sorted(imported.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = fit(*given)
    assert "finished; nothing to do" in again.out, again.err


def test_train_says_which_policies_differ_and_refuses_another_shape(imported: Path, fit):
    run = imported.with_name("run")
    narrow = fit("--init_from", imported, "--model.width", 16)
    assert narrow.code == 2
    assert "GET of this run's shape" in narrow.err
    assert "width 32 instead of 16" in narrow.err
    assert not run.exists()
    for key in ("optimizer", "model"):
        path = imported / "state" / f"{key}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:99])
        assert "expected the state of a training" in fit("--init_from", imported).err
        path.write_bytes(whole)
    assert "expected a model (model_index.json)" in fit("--init_from", run.with_name("no")).err
    assert not run.exists()
    for path in (imported / "state").iterdir():
        path.unlink()
    (imported / "state").rmdir()
    result = fit("--init_from", imported)
    assert result.code == 0, result.err
    policies = "z0 was normal, is injection; map was plain, is anchored"
    assert f"starting from the weights in {imported} ({policies})" in result.out
