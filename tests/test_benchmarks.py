"""The benchmarks at their smallest: they run, and their figures are what they say."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch

from data.files import write_json
from get import GETPipeline, cost
from get.cost import images_per_second, in_turns, median_ratio
from pipeline.benchmarks import costs, memory, modes, scale, solvers, train, writer
from pipeline.benchmarks.one_step import random_pairs
from pipeline.make_pairs import main as make_pairs
from pipeline.recipes import RECIPES

from .problems import shake, tiny_get


def test_calls_take_turns_after_one_call_each_to_warm_up():
    calls = []
    seconds = in_turns({name: lambda n=name: calls.append(n) for name in "ab"}, turns=3)
    assert "".join(calls) == "ab" * 4
    for took in seconds.values():
        assert len(took.wall) == len(took.cpu) == 3
        assert min(took.wall) > 0


def test_turns_go_on_for_as_long_as_asked(monkeypatch):
    clock = count()  # every look at it takes a second, so the load of the machine plays no part
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    rate = images_per_second(lambda: calls.append(torch.is_grad_enabled()), 10, seconds=30.0)
    assert len(calls) == 1 + 11  # one to warm up; three looks at the clock a turn
    assert not any(calls)
    assert rate == 10


def test_a_ratio_is_the_median_over_turns():
    assert median_ratio([1.0, 2.0, 30.0], [2.0, 4.0, 3.0]) == 0.5


def test_memory_reports_kept_and_peak_bytes_of_every_mode(tmp_path, capsys):
    config = memory.MemoryConfig(
        output_dir=tmp_path, size="GET-T/2", image_size=4, batch_size=1, iterations=(1, 2)
    )
    memory.main(config)
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["bytes"].keys() == memory.modes(1).keys()
    for row in found["bytes"].values():
        assert all(0 < row[k]["kept"] <= row[k]["peak"] for k in ("1", "2"))
    assert found["bytes"]["unrolled"]["2"]["kept"] > found["bytes"]["unrolled"]["1"]["kept"]
    assert found["state_bytes"] == 4 * 256 * 4
    assert (tmp_path / "memory.png").stat().st_size > 0
    assert "implicit" in capsys.readouterr().out


def test_costs_are_the_hand_counts_and_ratios_to_the_teacher(tmp_path, capsys):
    config = costs.CostsConfig(
        output_dir=tmp_path, sizes=("GET-T/2", "ViT-S/4"), batch_sizes=(1, 2), repeats=1,
        training_batch=1, teacher_channels=8,
    )  # fmt: skip
    costs.main(config)
    found = json.loads((tmp_path / "costs.json").read_text())["models"]
    get, vit, teacher = found["GET-T/2"], found["ViT-S/4"], found[costs.TEACHER]
    assert get["macs"] == pytest.approx(7.0e9, rel=0.01)  # 7.0 G by hand (6 iterations, 32x32)
    assert get["parameters"] == pytest.approx(8.56e6, rel=0.01)
    assert (get["evaluations"], vit["evaluations"], teacher["evaluations"]) == (1, 1, 35)
    assert get["training_bytes"] > 0
    assert "training_bytes" not in teacher
    for row in found.values():
        best = max(int(b) / s for b, s in row["seconds"].items()) / row["evaluations"]
        assert row["images_per_second"] == best
    assert "| GET-T/2 | 8.6 M | 1 | 7.0 G |" in capsys.readouterr().out


def test_what_grows_with_the_number_of_shards_is_timed(tmp_path, capsys):
    config = scale.ScaleConfig(
        output_dir=tmp_path / "out", shards=20, pairs_per_shard=100, batch_size=16, steps=3
    )
    scale.main(config)
    found = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert (found["objects"], found["pairs"]) == (41, 2000)
    assert len(found["seconds"]) == 5
    assert min(found["seconds"].values()) > 0
    assert "a training counts the shards" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scale.json"]


def test_solvers_are_compared_at_the_same_number_of_evaluations(tmp_path):
    pytest.importorskip("torchdeq")
    solvers.main(solvers.SolversConfig(output_dir=tmp_path, batch_size=2, evaluations=4, repeats=1))
    rows = json.loads((tmp_path / "solvers.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        ours, theirs = (row[who]["evaluations"] for who in ("ours", "torchdeq"))
        assert theirs - ours in (0, 1)  # torchdeq evaluates once more to attach its gradient
        assert row["ratio"].keys() >= {"forward_seconds", "peak_bytes"}


def tiny_training(tmp_path) -> train.TrainBenchmarkConfig:
    sizes = ("GET-T/2", "ViT-S/8")
    return train.TrainBenchmarkConfig(
        output_dir=tmp_path, sizes=sizes, fast_size="GET-T/2", image_size=8, batch_size=1, repeats=1
    )


def test_training_steps_are_compared_with_the_limit_and_with_torchdeq(tmp_path, capsys):
    pytest.importorskip("torchdeq")
    train.main(tiny_training(tmp_path))
    found = json.loads((tmp_path / "train.json").read_text())["sizes"]
    assert list(found) == ["GET-T/2", "ViT-S/8"]
    assert found["ViT-S/8"]["steps"].keys() == {"unrolled"}
    steps = found["GET-T/2"]["steps"]
    assert steps["checkpointed"]["ratio_to"].keys() == {"torchdeq", "torchdeq --mem"}
    for size in found.values():
        for step in size["steps"].values():
            assert 0 < step["of_limit"] < 1
            assert 0 < step["bytes"]["kept"] < step["bytes"]["peak"]
    assert "| GET-T/2 | torchdeq --mem |" in capsys.readouterr().out


def test_torchdeq_makes_the_same_losses_and_gradients_of_a_get(tmp_path):
    pytest.importorskip("torchdeq")
    config = replace(tiny_training(tmp_path), image_size=4)
    found = {}
    for name, step in train.ways(config, "GET-T/2", torch.device("cpu")).items():
        student = shake(step.student).double()
        pairs, z0 = random_pairs(student, 2), step.random_start(0, 2)
        assert z0 is not None
        data = pairs.noise.double(), None, pairs.images.double(), z0.double()
        losses = step.module(*data).iterates
        assert len(losses) == 6
        found[name] = losses, torch.autograd.grad(losses.sum(), step.updates.parameters)
    for name in ("checkpointed", "torchdeq", "torchdeq --mem"):
        torch.testing.assert_close(found[name], found["unrolled"], msg=name)


def test_bf16_is_compared_with_tf32(tmp_path):
    found = train.fast(tiny_training(tmp_path), torch.device("cpu"), compiled=False)
    assert found["steps"].keys() == {"TF32", "bf16, compiled"}
    assert found["speedup"] > 0


def test_writing_pairs_is_compared_with_the_teacher_alone(tmp_path):
    writer.main(writer.WriterConfig(output_dir=tmp_path, recipe="smoke", repeats=1))
    found = json.loads((tmp_path / "writer.json").read_text())
    rates = found["job_pairs_per_second"], found["teacher_images_per_second"]
    assert found["overhead"] == pytest.approx(1 - rates[0] / rates[1])


def test_modes_puts_every_student_into_one_table(tmp_path, monkeypatch, capsys):
    names = ["equilibria-unrolled", "equilibria-jacobian-1"]
    students = RECIPES["equilibria"].students
    recipe = replace(RECIPES["equilibria"], students={name: students[name] for name in names})
    monkeypatch.setitem(RECIPES, "equilibria", recipe)
    small = {"num_pairs": 64, "num_inference_steps": 2, "output_dir": tmp_path / "pairs"}
    make_pairs(replace(RECIPES["smoke"].pairs, **small))
    figures = {
        str(k): {"training": {"fid": float(k)}, "l1_to_teacher": 0.1} for k in (1, 3, 6, 12, 24)
    }
    for name in names:
        GETPipeline(tiny_get(channels=1, num_classes=10)).save_pretrained(tmp_path / name)
        write_json(tmp_path / "evaluation" / f"{name}.json", {"by_iterations": figures})
    torch.manual_seed(0)
    modes.main(
        modes.ModesConfig(
            recipe="equilibria",
            runs=tmp_path,
            pairs=tmp_path / "pairs",
            evaluation=tmp_path / "evaluation",
            output_dir=tmp_path / "out",
            unit=names[0],
            repeats=1,
        )
    )
    found = json.loads((tmp_path / "out" / "modes.json").read_text())
    assert list(found["students"]) == names
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0].startswith("| training | time per step |")
    assert "| unrolled | 1.00x | 1.0 | 3.0 | 6.0 | 12.0 | 24.0 |" in lines[2]
    assert "Jacobian penalty 1 in 50% of steps" in lines[3]
