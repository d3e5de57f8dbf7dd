"""A plan says what a training takes, finds the pairs or their absence, and touches nothing."""

import gc
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.data_set import open_data_set
from data.manifest import record_path
from data.pairs import Pairs
from data.writer import write_given
from get.cost import LiveBytes, Macs, count_macs
from get.errors import InputError
from get.losses import IterateLoss
from get.noise import draw
from pipeline import cli
from pipeline.plan import continuing, describe, main
from pipeline.recipes import RECIPES
from pipeline.recipes.architectures import GETModel, ViTModel
from pipeline.recipes.recipe import plans, students
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_student
from pipeline.training.pairs_on_disk import PairsOnDisk
from pipeline.training.step import TrainingStep
from pipeline.training.step_cost import image_macs, step_cost

from .problems import Softsign
from .shards import write_pairs as shards_of

STUDENTS = students(RECIPES)
SMOKE = STUDENTS["smoke"]
PLAN = plans(RECIPES)["smoke"]
MANIFEST, BATCH = RECIPES["smoke"].manifest(), SMOKE.global_batch_size
WAYS = {
    "unrolled": SMOKE,
    "normal": replace(SMOKE, model=replace(GETModel(), z0="normal", map="plain")),
    "checkpointed": replace(SMOKE, gradient_checkpointing=True),
    "phantom": replace(SMOKE, gradient="phantom", solver_tol=1e-12, solver_max_steps=3),
    "implicit": replace(SMOKE, gradient="implicit", solver_tol=1e-12, solver_max_steps=3),
    "window": replace(SMOKE, window_share=0.5),
    "penalty": replace(SMOKE, jacobian_weight=1.0),
    "micro-steps": replace(SMOKE, gradient_accumulation_steps=2),
    "averages": replace(SMOKE, ema_sigma_rel=(0.05, 0.1)),
    "vit": replace(SMOKE, model=ViTModel()),
}


def measured(config: TrainConfig) -> int:
    """Return the peak bytes of real steps with all that training holds; the first moves little."""
    gc.collect()
    with LiveBytes() as memory:
        step = TrainingStep(config, build_student(config, MANIFEST))
        for number in range(2):
            indices = range(number * BATCH, (number + 1) * BATCH)
            noise, labels = draw(0, indices, MANIFEST.image_shape, MANIFEST.num_classes)
            assert labels is not None
            batch = Pairs(noise.clone(), torch.randn_like(noise), labels.clone())
            del noise, labels
            step(batch, number)
            del batch
    return memory.peak


@pytest.mark.parametrize("way", WAYS)
def test_the_estimate_of_memory_is_what_true_steps_take(way: str):
    config = WAYS[way]
    estimate = step_cost(config, MANIFEST).total(1)
    assert estimate == pytest.approx(measured(config), rel=0.01)


def test_several_processes_share_the_batch_and_hold_buckets():
    alone, of_two = (step_cost(SMOKE, MANIFEST, processes) for processes in (1, 2))
    assert 0.45 < of_two.kept / alone.kept < 0.55
    assert of_two.total(2) - of_two.total(1) == of_two.gradients
    assert alone.checkpoint == 3 * alone.weights + alone.moments


def test_work_is_counted_as_torchs_own_counter_does():
    with torch.device("meta"):
        student = build_student(SMOKE, MANIFEST)
    real = build_student(SMOKE, MANIFEST)
    noise, labels = draw(0, range(1), (1, 8, 8), 10)
    assert image_macs(student) == image_macs(real) == count_macs(lambda: real(noise, labels))
    module = IterateLoss(real)
    with Macs() as forward:
        module(noise, labels, noise)
    assert forward.total == count_macs(lambda: module(noise, labels, noise))
    step = step_cost(replace(SMOKE, window_share=0.0), MANIFEST)
    assert 2.9 < step.macs / SMOKE.global_batch_size / forward.total < 3.1


@pytest.mark.parametrize("name", ["cifar10-cond", "imagenet256-latent"])
def test_a_pair_takes_the_bytes_it_is_said_to(name: str, tmp_path: Path):
    manifest = replace(RECIPES[name].manifest(), pairs_per_shard=250)
    noise, labels = draw(0, range(250), manifest.image_shape, manifest.num_classes)
    open_data_set(tmp_path, manifest)
    record = write_given(tmp_path, 0, manifest, Pairs(noise, noise, labels))
    pairs = PairsOnDisk(source=tmp_path / "nowhere", recipe=name, manifest=manifest)
    size, how = pairs.bytes_per_pair()
    assert how == "exactly"
    assert 0 <= record.bytes - 250 * size <= 10240  # a tar ends with empty blocks


def test_the_largest_models_are_described_without_their_pairs(tmp_path: Path):
    config = plans(RECIPES)["cifar10-get-b"]
    plan = describe(replace(config, output_dir=tmp_path / "run", num_processes=8))
    for line in (
        "  model.equilibrium_mlp_ratio: 12.0",
        "  dataloader_num_workers: 0",
        "  GET: 62,207,244 parameters, 81,189,666,816 MACs per image",
        "  pairs: 1,000,000 of 3x32x32 in runs/pairs/cifar10-uncond",
        "128 = 8 processes x 1 micro-steps; 800000 steps, 102.4 epochs",
        "weights 237.30 MiB",
        "a pair takes exactly 24.01 KiB (npy32)",
        "finished pairs: 0 of 1,005,000",
        "  output_dir: a new run",
    ):
        assert line in plan
    last = plan.splitlines()[-1]
    assert last.startswith("The pairs do not fit: expected pairs in runs/pairs/cifar10-uncond")
    assert last.endswith("to make them: python -m pipeline.make_pairs cifar10")
    assert not list(tmp_path.iterdir())


def test_pairs_of_which_nobody_knows_anything_leave_the_settings(tmp_path: Path):
    plan = describe(replace(PLAN, output_dir=tmp_path / "run", pairs=tmp_path / "mine"))
    assert "  model.width: 64" in plan
    assert "pairs of unknown shape" in plan
    assert plan.endswith(f"python -m pipeline.make_pairs RECIPE --output_dir {tmp_path / 'mine'}")


def test_the_network_of_a_perceptual_loss_is_left_out_and_not_downloaded(tmp_path: Path):
    plan = describe(replace(PLAN, output_dir=tmp_path / "run", loss="lpips"))
    assert "forward and backward without the network of lpips" in plan


def test_a_folder_named_like_a_recipe_is_taken_for_its(tmp_path: Path):
    plan = describe(replace(PLAN, output_dir=tmp_path / "run", pairs=tmp_path / "smoke"))
    assert "pairs: 256 of 1x8x8" in plan
    assert plan.endswith(f"python -m pipeline.make_pairs smoke --output_dir {tmp_path / 'smoke'}")


def write_pairs(folder: Path, shards: int = 5) -> Path:
    """Write pairs like those of the recipe; five shards are all it asks for."""
    teacher = Softsign()
    teacher.image_shape = (1, 8, 8)
    return shards_of(folder, shards, "png", teacher, teacher_batch_size=64, pairs_per_shard=64)


def test_the_script_says_that_pairs_fit_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folders = "--pairs", write_pairs(tmp_path / "smoke"), "--output_dir", tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["plan.py", "smoke", *map(str, folders)])
    cli.run(main, plans)
    out = capsys.readouterr().out
    assert out.endswith("The pairs fit: 4 shards to train on, 1 held out.\n")
    assert "on average" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_pairs_that_are_not_complete_are_reported_and_no_error(tmp_path: Path):
    pairs = write_pairs(tmp_path / "smoke")
    config = replace(PLAN, output_dir=tmp_path / "run", pairs=pairs)
    record_path(pairs, 4).unlink()
    plan = describe(config)
    assert "finished pairs: 256 of 320 in 4 shards" in plan
    assert "not complete, training could start on 3 shards" in plan.splitlines()[-1]
    record_path(pairs, 1).unlink()
    last = describe(config).splitlines()[-1]
    assert re.match(r"The pairs do not fit: expected shard 1 in .*; to make them: ", last)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"gradient_accumulation_steps": 3}, "expected global_batch_size 16 ="),
        ({"dataloader_num_workers": 17}, "1 processes divide, of 17 pairs or more each"),
        ({"shard_memory": 1e-6}, "expected shard_memory for the 4 shards that a process reads"),
        (
            {"holdout_shards": 9},
            "expected training shards in .*, got none beside",
        ),
    ],
)
def test_contradictions_are_errors_as_in_training(tmp_path: Path, changes: dict, error: str):
    config = replace(PLAN, output_dir=tmp_path / "run", pairs=tmp_path / "smoke", **changes)
    with pytest.raises(InputError, match=error):
        describe(config)


def test_a_full_disk_and_an_old_run_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = replace(PLAN, output_dir=tmp_path / "run", pairs=tmp_path / "smoke")
    (tmp_path / "run" / "checkpoints" / "checkpoint-10").mkdir(parents=True)
    monkeypatch.setattr("pipeline.plan.free", lambda path: 1000)
    plan = describe(config)
    assert "goes on from checkpoint-10" in plan
    assert "free 1000 bytes: TOO LITTLE" in plan
    (tmp_path / "run" / "finished.json").write_text("{}")
    assert continuing(config) == "  output_dir: a finished run; nothing to do"
