"""A recipe from outside the repository: a folder of pictures and an architecture of one's own.

Nothing in the repository knows the folder, the recipe or the architecture; every script runs them.
"""

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.files import read_json
from get.cost import images_per_second
from get.errors import InputError
from get.pipeline_get import GETPipeline
from pipeline import cli
from pipeline.recipes import RECIPES, measures, recipe
from pipeline.recipes.own import load

OWN = '''
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffusers.configuration_utils import register_to_config
from torch import nn

from get.models import Student
from pipeline.recipes import Architecture, GETModel, distillation


class ConvNet(Student):
    """Two convolutions; the label moves the channels between them."""

    @register_to_config
    def __init__(self, image_size=8, channels=3, num_classes=None, patch_size=2, width=8):
        super().__init__()
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.label = nn.Embedding(num_classes, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noise, labels=None):
        return self.last((self.first(noise) + self.label(labels)[:, :, None, None]).relu())


@dataclass(frozen=True, kw_only=True)
class ConvModel(Architecture):
    width: int = 8

    def build(self, image_size, channels, num_classes):
        return ConvNet(
            image_size=image_size, channels=channels, num_classes=num_classes, **asdict(self)
        )


mine = distillation(
    "mine",
    real_images=Path(__file__).parent / "pictures",
    num_pairs=6 * 1024,
    model=GETModel(width=16),
    baselines={"conv": ConvModel()},
)
short = dict(max_train_steps=4, lr_warmup_steps=1, global_batch_size=16)
RECIPES = {
    "mine": replace(
        mine,
        classifier=replace(mine.classifier, width=8, **short),
        teacher=replace(mine.teacher, block_out_channels=(8, 16), **short),
        pairs=replace(
            mine.pairs,
            num_pairs=6 * 64,
            pairs_per_shard=64,
            teacher_batch_size=64,
            num_inference_steps=2,
        ),
        students={n: replace(c, **short, holdout_shards=1) for n, c in mine.students.items()},
        evaluate=replace(mine.evaluate, holdout_shards=1, num_images=64, iterations=(1, 3)),
    )
}
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file of recipes beside a folder of pictures; the working directory is there."""
    generator = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.array(colour) + generator.integers(-40, 40, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    file = tmp_path / "own_recipes.py"
    file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    before = dict(RECIPES)
    yield file
    RECIPES.clear()
    RECIPES.update(before)
    load.cache_clear()
    sys.modules.pop("own_recipes", None)


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run a script's main as its command line does."""
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--recipes", "own_recipes.py"])
    cli.run(import_module(f"pipeline.{script}").main, TABLES[script])


TABLES = {
    "train_classifier": recipe.classifiers,
    "train_teacher": recipe.teachers,
    "make_pairs": recipe.pairs,
    "plan": recipe.plans,
    "train": recipe.students,
    "sample": recipe.samples,
    "evaluate": measures.evaluations,
    "report": measures.reports,
}


def test_pictures_and_an_architecture_from_outside_go_through_every_stage(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for script in ("train_classifier", "train_teacher", "make_pairs"):
        run(monkeypatch, script, "mine")
    run(monkeypatch, "plan", "mine-conv", "--num_processes", "2")
    assert "ConvNet: " in capsys.readouterr().out
    for student in ("mine", "mine-conv"):
        run(monkeypatch, "train", student)
        run(monkeypatch, "sample", student, "--num_images", "4")
    quick = partial(images_per_second, seconds=0.01)
    monkeypatch.setattr("pipeline.evaluate.images_per_second", quick)
    for script in ("evaluate", "report"):
        run(monkeypatch, script, "mine")

    runs = own.parent / "runs"
    assert len(list((runs / "mine-conv" / "images").glob("0*.png"))) == 4
    measured = read_json(runs / "mine" / "evaluation" / "mine-conv.json")
    assert measured["kind"] == "ConvNet"
    assert measured["training"]["fid"] > 0
    assert measured["inputs"]["real_images"] == str(own.parent / "pictures")
    pipeline = GETPipeline.from_pretrained(runs / "mine-conv", use_safetensors=True)
    images = pipeline(batch_size=2, class_labels=1, return_dict=False)[0]
    assert len(images) == 2
    assert "mine-conv" in (runs / "mine" / "evaluation" / "report.md").read_text()


def test_what_is_no_file_of_recipes_is_refused_with_a_sentence(tmp_path: Path):
    empty = tmp_path / "nothing_here.py"
    empty.write_text("")
    for source in (str(tmp_path / "missing.py"), "no_such_module:RECIPES", str(empty)):
        with pytest.raises(InputError, match=r"expected .*; "):
            load(source)
