"""What all tests share: few threads (two workers run at the same time), no network, small runs."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from . import typecheck as typecheck  # named in pyproject.toml
from .processes import ROOT, Result, Script, completed, template
from .runs import SMALL

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collectstart() -> None:
    """Import the large packages before ours, which saves a worker 6 seconds.

    While a module of ours is imported, the plugin that checks its types hides the compiled files of
    every package imported from there.
    """
    import accelerate  # noqa: F401
    import diffusers.models.autoencoders.autoencoder_kl
    import diffusers.pipelines.pipeline_utils  # noqa: F401


@pytest.fixture(autouse=True)
def _alike() -> None:
    """One thread, and the same random numbers whatever ran before."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


# ---------------------------------------------------------------- scripts


@pytest.fixture(scope="session")
def script() -> Iterator[Script]:
    """Run `python -m module arguments` in processes that can be killed."""
    with template() as script:
        yield script


@pytest.fixture(scope="session")
def train(script: Script) -> Script:
    """Run a small training in such processes."""

    def train(run: Path, *arguments: object, **options) -> Result:
        command = "pipeline.train", "smoke", *SMALL, "--output_dir", run, *arguments
        return script(*command, **options)

    return train


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Result]:
    """Run a script in the process of the tests, which is fastest; speeds are measured in brief."""
    from get import cost

    brief = partial(cost.images_per_second, seconds=0.05)
    monkeypatch.setattr(cost, "images_per_second", brief)

    def here(name: str, *arguments: object, **environment: str) -> Result:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "pipeline" / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result([code], *capsys.readouterr())

    return here


# ---------------------------------------------------------------- what scripts made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small shards to train on and one to hold out, of a teacher in closed form."""
    from .shards import write_pairs

    return write_pairs(tmp_path_factory.mktemp("pairs"), 5, "png")


@pytest.fixture(scope="session")
def smoke_pairs(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make_pairs smoke` writes."""
    folder = tmp_path_factory.mktemp("smoke") / "pairs"
    completed(script("pipeline.make_pairs", "smoke", "--output_dir", folder))
    return folder


@pytest.fixture(scope="session")
def smoke(script: Script, smoke_pairs: Path) -> Path:
    """What `train smoke` leaves."""
    folder = smoke_pairs.with_name("student")
    completed(script("pipeline.train", "smoke", "--pairs", smoke_pairs, "--output_dir", folder))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 colour pictures in two classes."""
    from get.images import to_pil, to_uint8
    from get.noise import draw

    folder = tmp_path_factory.mktemp("own") / "pictures"
    noise, _ = draw(0, range(40), (3, 16, 16))
    for i, picture in enumerate(to_uint8(noise / 3)):
        path = folder / ("dark" if i % 2 else "bright") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(picture).save(path)
    return folder


@pytest.fixture(scope="session")
def own_teacher(script: Script, pictures: Path) -> Path:
    """A teacher trained for three steps on the pictures."""
    folder = pictures.with_name("teacher")
    few = "--train_data_dir", pictures, "--max_train_steps", 3, "--output_dir", folder
    completed(script("pipeline.train_teacher", "smoke", *few))
    return folder


@pytest.fixture(scope="session")
def own_pairs(script: Script, own_teacher: Path) -> Path:
    """Pairs of that teacher."""
    folder = own_teacher.with_name("pairs")
    few = "--num_pairs", 80, "--pairs_per_shard", 16, "--num_inference_steps", 2
    given = "--teacher", own_teacher, "--output_dir", folder
    completed(script("pipeline.make_pairs", "smoke", *few, *given))
    return folder
