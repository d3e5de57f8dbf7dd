"""Files as locuslab/get writes them, and the conversion of them as a user starts it."""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from get.models.locuslab import from_locuslab

from .processes import Result

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL: dict[str, Any] = {
    "model": "GET-Tiny/2",
    "input_size": 8,
    "cond": False,
    "num_classes": 10,
    "grad": [6],
    "sup_gap": 1,
    "f_solver": "fixed_point_iter",
    "f_stop_mode": "abs",
    "f_max_iter": 0,
    "eval_f_max_iter": 6,
    "eval_factor": 1.0,
    "norm_type": "none",
    "ift": False,
    "mem": False,
    "lr": 1e-4,
    "resume": None,
}


@pytest.fixture(autouse=True)
def _nothing_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def convert(here: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function that runs the script in this process."""
    return partial(here, "convert")


def refused(result: Result, *what: str) -> None:
    """Check that a script said in one line what is wrong, with exit code 2."""
    assert result.code == 2
    line = result.err.splitlines()[-1]
    assert line.startswith("convert: expected ")
    assert all(part in line for part in what), line


def untouched(tmp_path: Path) -> None:
    """Check that nothing was left at OUT or next to it."""
    assert not [p.name for p in tmp_path.iterdir() if "out" in p.name]


def saved(path: Path, content: object = None) -> Path:
    torch.save(torch.arange(6.0) if content is None else content, path)
    return path


def old_pairs(folder: Path, counts: dict[str, int], classes: int | None = 10) -> list[Tensor]:
    """Write pairs as locuslab/get does; return noise, images and labels in file order."""
    generator = torch.Generator().manual_seed(1)
    for kind in ("latent", "image"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    made: list[tuple[Any, ...]] = []
    for name, n in counts.items():
        noise, labels = torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 10
        images = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64) * 2.2 - 1.1
        images = images if classes is None else images.float()
        hot = torch.nn.functional.one_hot(labels, 10).float()
        torch.save(noise if classes is None else [noise, hot], folder / "latent" / name)
        torch.save(images, folder / "image" / name)
        made.append((int(name.split(".")[0]), noise, images, labels))
    made.sort(key=lambda row: row[0])
    return [torch.cat(parts) for parts in zip(*(row[1:] for row in made), strict=True)]


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def official(
    path: Path, record: dict[str, Tensor], opt: object = None, **args: Any
) -> dict[str, Tensor]:
    """Write a checkpoint as locuslab/get does, the recorded weights as its average."""
    keys = [k.removeprefix("state.") for k in record if k.startswith("state.")]
    keys.sort(key=lambda k: k != "pos_embed")  # first there
    ema = OrderedDict((k, record[f"state.{k}"]) for k in keys)
    model = OrderedDict((k, v if k == "pos_embed" else v + 1) for k, v in ema.items())
    given = OFFICIAL | {"cond": "labels" in record} | args
    namespace = argparse.Namespace(**given)
    content = {"args": namespace, "model": model, "ema": ema, "opt": opt or {"state": {}}}
    torch.save(content, path)
    return ema


def locuslab_state(model: torch.nn.Module) -> OrderedDict[str, Tensor]:
    """Return a state dict under the keys of locuslab/get."""
    names = {
        "embed.position": "pos_embed",
        "embed.patch.": "x_embedder.proj.",
        "embed.label.": "y_embedder.embedding_table.",
        "injection.": "qkv_inj.",
        "equilibrium_blocks.": "deq_blocks.",
        "decode.": "final_layer.",
        "final_layer.norm.": "final_layer.norm_final.",
    }
    state = OrderedDict()
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        state[key] = value
    assert list(from_locuslab(state)) == list(model.state_dict())
    return state
