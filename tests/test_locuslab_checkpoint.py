"""Checkpoints of locuslab/get become pipelines that make its images, or are refused by name."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from get.models import GET, SIZES, ViT, build
from get.pipeline_get import GETPipeline
from pipeline.jobs.students import load_pipeline

from .locuslab_files import _nothing_was_executed as _nothing_was_executed
from .locuslab_files import convert as convert
from .locuslab_files import golden, locuslab_state, official, refused, saved, untouched


@pytest.mark.parametrize("name", ["get_uncond", "get_cond", "vit_cond"])
def test_a_converted_pipeline_makes_the_images_of_the_published_code(tmp_path, convert, name):
    record, vit = golden(name), name == "vit_cond"
    official(tmp_path / "x.pth", record, model="ViT-Tiny/2" if vit else "GET-Tiny/2")
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2)
    assert result.code == 0, result.err
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    assert isinstance(model, ViT if vit else GET)
    start = {} if vit else {"z0": record["z0"]}
    with torch.no_grad():
        images = model(record["noise"], record.get("labels"), **start)
    expected = record["output" if vit else "eval_output"]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    policy = {"iterations": 6, "z0": "normal", "map": "plain", "select": "lowest_residual"}
    assert vit or policy.items() <= dict(model.config).items()
    source = json.loads((tmp_path / "out" / "source.json").read_text())
    assert source["args"]["lr"] == 1e-4
    assert source["weights"] == "ema"


def test_raw_weights_are_converted_where_asked_for(tmp_path: Path, convert):
    ema = official(tmp_path / "x.pth", golden("get_uncond"))
    given = "--heads", 2, "--weights", "model"
    assert convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", *given).code == 0
    pipeline = GETPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    found = pipeline.model.state_dict()["injection.weight"]
    assert torch.equal(found, ema["qkv_inj.weight"] + 1)


def test_a_vits_checkpoint_says_nothing_of_a_solver(tmp_path: Path, convert):
    official(tmp_path / "x.pth", golden("vit_cond"), eval_f_max_iter=0, f_solver="anderson")
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2)
    assert result.code == 0, result.err


@pytest.mark.parametrize("size", ["GET-T/2", "ViT-S/4"])
def test_published_sizes_are_known_by_name(tmp_path: Path, convert, size: str):
    assert size in SIZES
    expected = build(size, image_size=8, num_classes=4)  # new weights
    record = {f"state.{k}": v for k, v in locuslab_state(expected).items()}
    official(tmp_path / "x.pth", record, model=size, cond=True, num_classes=4)
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out")
    assert result.code == 0, result.err
    assert f"{size}, ema weights, 4 classes" in result.out
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    assert model.config["heads"] == expected.config["heads"]
    assert model.config["width"] == expected.config["width"]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another size": ({"model": "GET-S/2"}, "width 32 instead of 512"),
    "another kind": ({"model": "ViT-S/2"}, "kind GET instead of ViT"),
    "a larger image": ({"input_size": 16}, "input_size 8 instead of 16"),
    "classes": ({"cond": True}, "cond False instead of True"),
    "another solver": ({"f_solver": "anderson"}, "f_solver fixed_point_iter, got 'anderson'"),
    "another choice of iterate": ({"f_stop_mode": "rel"}, "f_stop_mode abs, got 'rel'"),
    "no iterations": ({"eval_f_max_iter": 0}, "eval_f_max_iter or f_max_iter above 0"),
}


@pytest.mark.parametrize(("args", "what"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_contradict_the_tensors_are_refused(tmp_path, convert, args, what):
    official(tmp_path / "x.pth", golden("get_uncond"), **args)
    given = tmp_path / "x.pth", tmp_path / "out", "--heads", 2
    refused(convert("get_checkpoint", *given), what)
    untouched(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model", "f_solver", "num_classes", "eval_f_max_iter", "grad"])
def test_arguments_that_unfold_to_terabytes_are_left_out(tmp_path, convert, name):
    nested: list = []
    for _ in range(45):
        nested = [nested, nested]
    official(tmp_path / "x.pth", golden("get_cond"), **{name: nested})
    result = convert("get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2)
    assert (result.code, "got neither" in result.err) in {(0, False), (2, True)}
    if result.code == 0:
        assert (tmp_path / "out" / "source.json").stat().st_size < 2000


def test_a_name_nobody_published_asks_for_heads_and_iterations_may_be_a_factor(tmp_path, convert):
    official(
        tmp_path / "x.pth", golden("get_uncond"), eval_f_max_iter=0, f_max_iter=4, eval_factor=2.5
    )
    given = "get_checkpoint", tmp_path / "x.pth", tmp_path / "out"
    refused(convert(*given), "GET-Tiny/2", "give --heads")
    assert "heads above 0" in convert(*given, "--heads", 0).err
    refused(convert(*given, "--heads", 3), "heads divide")
    untouched(tmp_path)
    assert convert(*given, "--heads", 2).code == 0
    model = load_pipeline(tmp_path / "out", torch.device("cpu")).model
    assert model.config["iterations"] == 10


def test_state_dicts_with_other_tensors_are_refused(tmp_path: Path, convert):
    record = golden("get_uncond")
    given = "get_checkpoint", tmp_path / "x.pth", tmp_path / "out", "--heads", 2
    key = "state.blocks.1.mlp.fc2.bias"
    for changed, what in (
        ({k: v for k, v in record.items() if k != key}, "blocks.1.mlp.fc2.bias: torch.float32"),
        ({**record, key: record[key].double()}, "got torch.float64 [32]"),
        ({**record, "state.deq_blocks.0.attn.qkv.weight_g": record[key]}, "weight_g"),
        ({k: v for k, v in record.items() if "x_embedder" not in k}, "embed.patch.weight"),
        ({**record, "state.y_embedder.embedding_table.weight": torch.tensor(1.0)}, "embed.label"),
        ({k: v for k, v in record.items() if not k.startswith("state.")}, "blocks.0.mlp.fc1"),
    ):
        official(tmp_path / "x.pth", changed)
        refused(convert(*given), what)
    for content in (
        {"model": {}},
        [1],
        {"args": argparse.Namespace(), "model": {"a": 1}, "ema": {}},
    ):
        refused(convert("get_checkpoint", saved(tmp_path / "y", content), tmp_path / "out"))
    untouched(tmp_path)


def test_moments_of_other_parameters_are_refused(tmp_path: Path, convert):
    record, given = golden("get_uncond"), ("get_checkpoint", tmp_path / "x.pth", tmp_path / "out")
    moment = {"step": 3, "exp_avg": torch.zeros(32), "exp_avg_sq": torch.zeros(32)}
    for state, what in (
        ({0: moment}, "at '0'"),  # the frozen table
        ({99: moment}, "at '99'"),
        ({1: {"momentum": torch.zeros(1)}}, "at '1'"),
        ({1: 5}, "at '1'"),
        ({2: moment}, "every trained parameter"),
        ({2: {**moment, "exp_avg": "x"}}, "got str"),
    ):
        official(tmp_path / "x.pth", record, opt={"state": state, "param_groups": []})
        refused(convert(*given, "--heads", 2), what)
    untouched(tmp_path)
