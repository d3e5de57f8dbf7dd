"""Settings that mean nothing are refused by name; seeds give every step draws of its own."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from get.errors import InputError
from get.noise import step_seed
from pipeline.jobs.processes import check_launcher
from pipeline.recipes.architectures import GETModel, ViTModel
from pipeline.recipes.settings_make import (
    ClassifierConfig,
    PairsConfig,
    SampleConfig,
    TeacherConfig,
    TrainingConfig,
)
from pipeline.recipes.settings_measure import EvaluateConfig
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import check_batch
from pipeline.training.step import TrainingStep

from .problems import tiny_get


def test_every_seed_step_and_stream_has_draws_of_its_own():
    large = 2**63
    keys = [(s, k, w) for s in (0, 1, large, large + 1) for k in (0, 1, 2) for w in (0, 1, 8)]
    seeds = [step_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert step_seed(0, 0) == 49592932  # golden: another value would change every training


PATHS = {name: Path("x") for name in ("output_dir", "pairs", "teacher", "model", "feature_network")}


def make(kind: type, **changes):
    names = kind.__dataclass_fields__
    needed = {
        "num_pairs": 64,
        "pairs_per_shard": 64,
        "holdout_shards": 1,
        "runs": (),
        "real_images": "",
        "feature_networks": (),
    }
    given = {k: v for k, v in {**PATHS, **needed}.items() if k in names}
    given.pop("model", None) if kind is TrainConfig else None
    return kind(**{**given, **changes})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (TrainingConfig, {"max_train_steps": 0}),
        (TrainingConfig, {"learning_rate": -1.0}),
        (TrainingConfig, {"checkpointing_steps": 0}),
        (TrainingConfig, {"ema_decay": 1.0}),
        (TrainingConfig, {"seed": -1}),
        (TrainingConfig, {"learning_rate": float("nan")}),
        (TrainingConfig, {"max_grad_norm": -1.0}),
        (TrainingConfig, {"max_grad_norm": 0.0}),
        (TrainingConfig, {"adam_beta2": 1.5}),
        (TrainingConfig, {"lr_warmup_steps": -5}),
        (TeacherConfig, {"muon_learning_rate": -1.0}),
        (TeacherConfig, {"sigma_max": 0.001}),
        (TeacherConfig, {"block_out_channels": (12, 16)}),
        (ClassifierConfig, {"width": 0}),
        (TrainConfig, {"global_batch_size": 0}),
        (TrainConfig, {"train_batch_size": 0}),
        (TrainConfig, {"holdout_shards": -7}),
        (TrainConfig, {"dataloader_num_workers": -1}),
        (TrainConfig, {"iterate_decay": -3.0}),
        (TrainConfig, {"frechet_weight": -1.0}),
        (TrainConfig, {"jacobian_weight": -1.0}),
        (TrainConfig, {"jacobian_probability": 2.0}),
        (GETModel, {"iterations": 0}),
        (GETModel, {"coda_depth": -1}),
        (ViTModel, {"patch_size": 0}),
        (TrainConfig, {"streams": 0}),
        (TrainConfig, {"validation_steps": 0}),
        (TrainConfig, {"gradient_accumulation_steps": 0}),
        (PairsConfig, {"num_pairs": 65}),
        (PairsConfig, {"teacher_batch_size": 0}),
        (SampleConfig, {"num_images": 0}),
        (SampleConfig, {"iterations": 0}),
        (SampleConfig, {"delta_threshold": -1.0}),
        (EvaluateConfig, {"batch_size": 0}),
        (EvaluateConfig, {"holdout_shards": 0}),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(kind, changes):
    make(kind)
    (name, value), *_ = changes.items()
    with pytest.raises(InputError, match=f"expected {name} .*got {re.escape(str(value))}"):
        make(kind, **changes)


def test_the_global_batch_is_divided_or_the_error_shows_the_product():
    config = make(TrainConfig, global_batch_size=128, gradient_accumulation_steps=2)
    check_batch(config, processes=4)
    check_batch(replace(config, train_batch_size=16), processes=4)
    with pytest.raises(InputError, match="128 = train_batch_size x 3 processes x 2 micro-steps"):
        check_batch(config, processes=3)
    with pytest.raises(InputError, match="got train_batch_size 32"):
        check_batch(replace(config, train_batch_size=32), processes=4)


def test_what_accelerate_was_told_otherwise_is_refused():
    precision, steps = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    for agreed in ({}, {precision: "no"}, {precision: "bf16"}, {steps: "1"}, {steps: "2"}):
        check_launcher("bf16", 2, agreed)
    with pytest.raises(InputError, match="mixed_precision no from accelerate too, got 'bf16'"):
        check_launcher("no", 2, {precision: "bf16"})
    with pytest.raises(InputError, match=r"gradient_accumulation_steps 2 .*, got '4'"):
        check_launcher("no", 2, {steps: "4"})
    check_launcher("no", 1, {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false"})
    with pytest.raises(InputError, match="no dynamo backend from accelerate, got 'INDUCTOR'; give"):
        check_launcher("no", 1, {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})


def test_a_training_asks_what_accelerate_was_told(here, tmp_path):
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    refused = here("train", "smoke", "--output_dir", tmp_path / "run", **told)
    assert refused.code == 2
    assert "expected gradient_accumulation_steps 1 from accelerate too, got '4'" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_weights_are_refused_with_what_takes_less_memory(strategy):
    """On CPUs accelerate would train unsharded, without a word."""
    with pytest.raises(InputError, match=f"got {strategy}; launch without it: pipeline.plan says"):
        check_launcher("no", 1, {f"ACCELERATE_USE_{strategy}": "true"})


def test_the_jacobian_penalty_is_applied_with_its_probability(tmp_path):
    def weights(config: TrainConfig) -> list[float]:
        step = TrainingStep(config, tiny_get())
        return [step.penalty_weight(number) for number in range(2000)]

    off = TrainConfig(output_dir=tmp_path, pairs=tmp_path)
    assert set(weights(off)) == {0.0}
    applied = weights(replace(off, jacobian_weight=2.0, jacobian_probability=0.3))
    assert set(applied) == {0.0, 2.0}
    assert 0.26 < sum(w > 0 for w in applied) / 2000 < 0.34
