"""Validation is shared by the processes and finds what one process finds."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from data.files import write_json
from data.manifest import read_manifest
from data.mixture import Mixture
from data.order import Order
from get import noise
from get.models import GET
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.validation import Validation, keeps

from .problems import Softsign, tiny_get
from .processes import ROOT, Script, completed
from .shards import write_pairs

PUBLISHED_SHARD = RECIPES["cifar10"].pairs.pairs_per_shard
HELD_OUT = 103  # pairs, which 2 does not divide


class Digits(Softsign):
    """A teacher of images of the size of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape = (1, 8, 8)


def student() -> GET:
    # one iteration of the plain map: other random starts are seen in the images
    return tiny_get(channels=1, num_classes=10, z0="normal", map="plain", iterations=1)


def validation(pairs: Path) -> Validation:
    config = TrainConfig(
        output_dir=pairs,
        pairs=pairs,
        feature_network=ROOT / "data/weights/digits-features",
        real_images="digits",
    )
    order = Order(source=pairs, shards=1, pairs_per_shard=HELD_OUT, seed=0, streams=1, batch_size=2)
    return Validation(config, read_manifest(pairs), Mixture((order,), 1), Accelerator(), None)


def main(pairs: Path) -> None:
    """Be one of two processes."""
    shared = validation(pairs)
    part = shared.part
    assert part is not None
    figures = [shared.measure(student()) for _ in range(2)]
    assert figures[0] == figures[1]
    write_json(pairs / f"{shared.accelerator.process_index}.json", [figures[0], part.places])


@pytest.fixture(scope="module")
def digit_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation") / "pairs"
    return write_pairs(folder, 2, "npy32", Digits(), pairs_per_shard=HELD_OUT)


def test_two_processes_share_the_held_out_pairs_and_find_what_one_finds(
    digit_pairs, script: Script
):
    alone = validation(digit_pairs).measure(student())
    completed(script("tests.test_validation", digit_pairs, processes=2))
    (main, places), (other, others) = (
        json.loads((digit_pairs / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert main == pytest.approx(alone, rel=1e-5)
    assert other == {"validation_l1": main["validation_l1"]}
    assert len(places) == len(others) == 52
    assert {*places, *others} == {*range(HELD_OUT)}


def test_the_start_of_a_held_out_pair_is_drawn_once(digit_pairs, monkeypatch):
    drawn: Counter[tuple[int, int]] = Counter()
    stream = noise._stream

    def counted(seed: int, index: int, kind: int):
        drawn[kind, index] += 1
        return stream(seed, index, kind)

    monkeypatch.setattr(noise, "_stream", counted)
    ours, model = validation(digit_pairs), student()
    figures = [ours.measure(model) for _ in range(3)]
    ours.picture(model)
    assert figures[0] == figures[2]
    assert drawn[noise.START, HELD_OUT - 1] == 1


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_the_starts_of_a_published_shard_are_kept_on_any_number_of_gpus(processes):
    count = -(-PUBLISHED_SHARD // processes)
    assert keeps(count, (256, 768), processes)  # GET-B/2: 200,000 numbers an image, slow to draw
    assert not keeps(10 * count, (256, 768), processes)


def test_bf16_trainings_are_validated_in_bf16(digit_pairs):
    ours, model, seen = validation(digit_pairs), student(), set()
    ours.config = replace(ours.config, mixed_precision="bf16")

    def note(layer: torch.nn.Module, given: object, made: torch.Tensor) -> None:
        seen.add(made.dtype)

    model.get_submodule("blocks.0.attn").register_forward_hook(note)
    ours.measure(model)
    assert seen == {torch.bfloat16}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
