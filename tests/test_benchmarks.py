"""The benchmarks at their smallest: they run, and their figures are what they say."""

import json
from dataclasses import replace

import pytest
import torch

from data.files import write_json
from get import GETPipeline
from pipeline.benchmarks import memory as benchmark_memory
from pipeline.benchmarks import modes as benchmark_modes
from pipeline.benchmarks import solvers as benchmark_solvers
from pipeline.benchmarks import train as benchmark_train
from pipeline.benchmarks import writer as benchmark_pairs
from pipeline.make_pairs import main as make_pairs
from pipeline.recipes import PAIRS, RECIPES, STUDENTS
from pipeline.recipes.settings_measure import (
    MemoryConfig,
    ModesConfig,
    SolversConfig,
    TrainBenchmarkConfig,
    WriterConfig,
)

from .problems import tiny_get


def test_memory_tells_kept_and_peak_bytes_of_every_mode(tmp_path, capsys):
    config = MemoryConfig(
        output_dir=tmp_path, size="GET-T/2", image_size=4, batch_size=1, iterations=(1, 2)
    )
    benchmark_memory.main(config)
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["bytes"].keys() == benchmark_memory.modes(1).keys()
    for row in found["bytes"].values():
        assert all(0 < row[k]["kept"] <= row[k]["peak"] for k in ("1", "2"))
    assert found["bytes"]["unrolled"]["2"]["kept"] > found["bytes"]["unrolled"]["1"]["kept"]
    assert found["state_bytes"] == 4 * 256 * 4
    assert (tmp_path / "memory.png").stat().st_size > 0
    assert "implicit" in capsys.readouterr().out


def test_solvers_are_compared_at_the_same_number_of_evaluations(tmp_path):
    pytest.importorskip("torchdeq")
    benchmark_solvers.main(
        SolversConfig(output_dir=tmp_path, batch_size=2, evaluations=4, repeats=1)
    )
    rows = json.loads((tmp_path / "solvers.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        ours, theirs = (row[who]["evaluations"] for who in ("ours", "torchdeq"))
        assert theirs - ours in (0, 1)  # torchdeq evaluates once more to attach its gradient
        assert row["ratio"].keys() >= {"forward_seconds", "peak_bytes"}


def tiny_training(tmp_path) -> TrainBenchmarkConfig:
    sizes = ("GET-T/2", "ViT-S/8")
    return TrainBenchmarkConfig(
        output_dir=tmp_path, sizes=sizes, fast_size="GET-T/2", image_size=8, batch_size=1, repeats=1
    )


def test_training_steps_are_compared_with_the_limit_and_with_torchdeq(tmp_path, capsys):
    pytest.importorskip("torchdeq")
    benchmark_train.main(tiny_training(tmp_path))
    found = json.loads((tmp_path / "train.json").read_text())["sizes"]
    assert list(found) == ["GET-T/2", "ViT-S/8"]
    assert found["ViT-S/8"]["steps"].keys() == {"unrolled"}
    steps = found["GET-T/2"]["steps"]
    assert steps["checkpointed"]["ratio_to"].keys() == {"torchdeq", "torchdeq --mem"}
    for size in found.values():
        assert sum(size["shares"].values()) == pytest.approx(1)
        assert size["products"]["share_of_macs"] <= 1
        for step in size["steps"].values():
            assert 0 < step["of_limit"] < 1
            assert 0 < step["bytes"]["kept"] < step["bytes"]["peak"]
    assert "| GET-T/2 | torchdeq --mem |" in capsys.readouterr().out


def test_torchdeq_makes_the_same_losses_and_gradients_of_a_get():
    pytest.importorskip("torchdeq")
    found = {}
    for name, module in benchmark_train.modules("GET-T/2", 4).items():
        training = benchmark_train.Training(module.double(), 2, torch.device("cpu"))
        for data in ("noise", "target", "z0"):
            setattr(training, data, getattr(training, data).double())
        losses = training.module(training.noise, None, training.target, training.z0).iterates
        assert len(losses) == 6
        found[name] = losses, torch.autograd.grad(losses.sum(), training.trainable)
    for name in ("checkpointed", "torchdeq", "torchdeq --mem"):
        torch.testing.assert_close(found[name], found["unrolled"], msg=name)


def test_products_alone_are_all_the_linear_layers_of_a_step():
    with benchmark_train.Products() as products:
        layer, x = torch.nn.Linear(3, 5), torch.ones(2, 3, requires_grad=True)
        layer(x).sum().backward()
    assert products.macs == 3 * 2 * 3 * 5  # forward, and either side of the backward pass
    products.replay()


def test_bf16_is_compared_with_tf32(tmp_path):
    found = benchmark_train.fast(tiny_training(tmp_path), torch.device("cpu"), compiled=False)
    assert found["steps"].keys() == {"TF32", "bf16, compiled"}
    assert found["speedup"] > 0


@pytest.mark.gpu
def test_bf16_and_compiled_is_faster_than_tf32_on_a_gpu(tmp_path):
    config = replace(tiny_training(tmp_path), fast_size="GET-B/2", image_size=32, batch_size=32)
    assert benchmark_train.fast(config, torch.device("cuda"))["speedup"] > 1


def test_writing_pairs_is_compared_with_the_teacher_alone(tmp_path):
    benchmark_pairs.main(WriterConfig(output_dir=tmp_path, recipe="smoke", repeats=1))
    found = json.loads((tmp_path / "pairs.json").read_text())
    rates = found["job_pairs_per_second"], found["teacher_images_per_second"]
    assert found["overhead"] == pytest.approx(1 - rates[0] / rates[1])


def test_modes_puts_every_student_into_one_table(tmp_path, monkeypatch):
    names = ["equilibria-unrolled", "equilibria-jacobian-1"]
    recipe = replace(RECIPES["equilibria"], students={name: STUDENTS[name] for name in names})
    monkeypatch.setitem(RECIPES, "equilibria", recipe)
    small = {"num_pairs": 64, "num_inference_steps": 2, "output_dir": tmp_path / "pairs"}
    make_pairs(replace(PAIRS["smoke"], **small))
    figures = {
        str(k): {"training": {"fid": float(k)}, "l1_to_teacher": 0.1} for k in (1, 3, 6, 12, 24)
    }
    for name in names:
        GETPipeline(tiny_get(channels=1, num_classes=10)).save_pretrained(tmp_path / name)
        write_json(tmp_path / "evaluation" / f"{name}.json", {"by_iterations": figures})
    torch.manual_seed(0)
    benchmark_modes.main(
        ModesConfig(
            recipe="equilibria",
            runs=tmp_path,
            pairs=tmp_path / "pairs",
            evaluation=tmp_path / "evaluation",
            output_dir=tmp_path / "out",
            reference=names[0],
            repeats=1,
        )
    )
    found = json.loads((tmp_path / "out" / "modes.json").read_text())
    assert list(found["students"]) == names
    lines = (tmp_path / "out" / "modes.md").read_text().splitlines()
    assert len(lines) == 4
    assert "| unrolled | 1.00x | 1.0 | 3.0 | 6.0 | 12.0 | 24.0 |" in lines[2]
    assert "Jacobian penalty 1 in 50% of steps" in lines[3]
