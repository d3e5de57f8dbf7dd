"""Comparisons of many short trainings: what they share, what a loop is worth, what is searched."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from get.errors import InputError
from pipeline.benchmarks import field, laboratory, loops, ours
from pipeline.make_pairs import main as make_pairs
from pipeline.recipes import RECIPES
from pipeline.recipes.architectures import ViTModel


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards for training and one held out, by the shipped teacher of digits."""
    folder = tmp_path_factory.mktemp("pairs")
    smoke = RECIPES["smoke"].pairs
    make_pairs(replace(smoke, output_dir=folder, num_pairs=96, pairs_per_shard=32))
    return folder


def settings(tmp_path: Path, pairs: Path) -> field.FieldConfig:
    return field.FieldConfig(
        output_dir=tmp_path,
        recipe="smoke",
        pairs=pairs,
        num_pairs=(16, 0),
        seeds=(0,),
        learning_rates=(0.005, 0.01),
        max_train_steps=3,
        evaluate_steps=2,
        images=32,
        contestants=("ViT 3", "ViT 4", "GET 1+1x2+1"),
    )


def test_every_contestant_is_searched_trained_and_judged_at_its_best(tmp_path, pairs, capsys):
    config = settings(tmp_path, pairs)
    field.main(config)
    found = json.loads((tmp_path / "field.json").read_text())
    for lost in found["trials"]:
        same = "contestant", "num_pairs", "seed"
        [won] = [run for run in found["runs"] if all(run[key] == lost[key] for key in same)]
        assert won["best"] <= lost["best"]
    assert len(found["rows"]) == 2 * 3
    for run in found["runs"]:
        assert [point["step"] for point in run["curve"]] == [2, 3]
        assert run["best"] == min(point["distance"] for point in run["curve"])
        assert run["judges"].keys() == {"digits-features-b", "digits-features-c"}
    assert (tmp_path / "field.png").stat().st_size > 0
    out = capsys.readouterr().out
    assert "| GET 1+1x2+1 |" in out
    assert "give more of them: ViT 3 with 16 pairs at 0.0" in out  # of two rates each is an end

    # The same command trains only what is missing.
    files = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "field-smoke").glob("*seed*.json")
    }
    assert len(files) == 3 * 2 * 2  # contestants, numbers of pairs, learning rates
    gone = min(files)
    before = json.loads(gone.read_text())
    gone.unlink()
    field.main(config)
    again = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "field-smoke").glob("*seed*.json")
    }
    assert {path for path in files if again[path] != files[path]} == {gone}
    assert json.loads(gone.read_text()) == before


def test_a_window_is_judged_at_more_iterations_beside_a_vit_of_equal_cost(tmp_path, pairs):
    config = replace(
        settings(tmp_path, pairs),
        num_pairs=(0,),
        learning_rates=(0.01,),
        contestants=("ViT 40", field.WINDOW),
    )
    field.main(config)
    vit, trained, longer = json.loads((tmp_path / "field.json").read_text())["rows"]
    assert (trained["contestant"], longer["contestant"]) == (field.WINDOW, "GET 2+3x12+2 window")
    assert trained["parameters"] == longer["parameters"] < 0.25 * vit["parameters"]
    assert longer["macs"] == pytest.approx(vit["macs"], rel=0.02)
    assert longer["judges"] != trained["judges"]
    assert longer["over_vit_of_equal_macs"]["mean"] == longer["distance"][0] / vit["distance"][0]
    assert trained["over_vit_of_equal_macs"] is None


def test_an_earlier_comparison_is_extended_without_its_runs(tmp_path, pairs):
    first = replace(settings(tmp_path / "first", pairs), contestants=("ViT 3",))
    field.main(first)
    earlier = json.loads((first.output_dir / "field.json").read_text())
    best = earlier["runs"][0]["learning_rate"]
    more = replace(
        first,
        output_dir=tmp_path / "more",
        extend=first.output_dir / "field.json",
        seeds=(0, 1),
        num_pairs=(16,),
    )
    field.main(more)
    trained = {path.name for path in (tmp_path / "more" / "field-smoke").glob("ViT*.json")}
    before = product((0, 16), (0.005, 0.01), (0,))
    assert trained == {
        f"ViT-3-lr{rate:g}-pairs{count}-seed{seed}.json"
        for count, rate, seed in (*before, (16, best, 1))
    }
    runs = json.loads((more.output_dir / "field.json").read_text())["runs"]
    assert runs[0] == next(run for run in earlier["runs"] if run["num_pairs"] == 16)
    kept = [run for run in runs if run["num_pairs"] == 0]  # not asked for, but measured before
    assert kept == [run for run in earlier["runs"] if run["num_pairs"] == 0]

    with pytest.raises(InputError, match=r"expected runs with these .* got max_train_steps 3;"):
        field.main(replace(more, output_dir=tmp_path / "other", max_train_steps=4))


def test_unknown_contestants_too_few_pairs_and_runs_with_other_settings_are_refused(
    tmp_path, pairs
):
    with pytest.raises(InputError, match=r"expected contestants among ViT 3, .* got ViT 5"):
        replace(settings(tmp_path, pairs), contestants=("ViT 5",))
    few = laboratory.Laboratory(settings(tmp_path, pairs), "runs")
    with pytest.raises(InputError, match=r"expected num_pairs up to \d+, .* got 999"):
        few.measured("run", few.settings, 999)
    with pytest.raises(InputError, match=r"expected runs with these .* got max_train_steps 3;"):
        laboratory.Laboratory(replace(settings(tmp_path, pairs), max_train_steps=4), "runs")
    with pytest.raises(InputError, match=r"expected 33 held-out pairs .* got 32"):
        laboratory.Laboratory(replace(settings(tmp_path, pairs), images=33), "runs")


def test_an_order_uses_every_pair_once_an_epoch():
    batches = laboratory.order(10, 4, seed=0)
    rows = torch.cat([next(batches) for _ in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == [*range(10)]
    assert rows[:10].tolist() != rows[10:].tolist()


# ---------------------------------------------------------------- what a loop is worth


def run(distance: float, once: int, looped: int = 0, times: int = 1, seed: int = 0) -> loops.Run:
    shape = {"once": once, "looped": looped, "times": times}
    return {"judges": {"b": distance, "c": distance}, "blocks": shape, "seed": seed}


def test_a_line_gives_depth_between_its_points_and_beyond():
    line = [(8, 1.0), (2, 4.0)]
    for depth in (1, 2, 4, 8, 16):
        assert loops.depth_worth(line, 8 / depth) == pytest.approx(depth)
    bent = [(1, 8.0), (2, 4.0), (8, 2.0)]
    assert loops.depth_worth(bent, 2.0 * 2**0.5) == pytest.approx(4)
    assert loops.depth_worth(bent, 16.0) == pytest.approx(0.5)


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.46, 1.0])
def test_phi_is_recovered_from_a_line_of_vits(phi: float):
    vits = [run(100 / depth, depth, seed=s) for depth in (3, 4, 6, 10) for s in (0, 1)]
    gets = [run(100 / (2 + 2 * 4**phi), 2, 2, 4, s) for s in (0, 1)]
    found = loops.phi_of(gets, vits)
    assert found is not None
    assert [*found.values()] == pytest.approx([phi] * 3, abs=1e-9)


def test_the_interval_is_that_of_all_choices_of_seeds():
    vits = [run(100 / depth, depth, seed=s) for depth in (3, 10) for s in (0, 1)]
    gets = [run(100 / (2 + 2 * 4**phi), 2, 2, 4, s) for s, phi in enumerate((0.0, 0.5))]
    found = loops.phi_of(gets, vits)
    assert found is not None
    assert (found["low"], found["high"]) == pytest.approx((0.0, 0.5), abs=1e-9)
    assert 0 < found["mean"] < 0.5


def test_the_line_of_vits_ends_where_deeper_ones_are_no_better():
    rising = [run(100 / depth, depth) for depth in (3, 6, 10)]
    gets = [run(100 / 4, 2, 1, 4)]
    deep = [run(11.0, 20), run(9.0, 40)]
    assert loops.phi_of(gets, [*rising, *deep]) == loops.phi_of(gets, rising) is not None
    assert loops.phi_of(gets, [run(20.0, 3), *rising[1:], run(25.0, 4)]) is None
    assert loops.phi_of(gets, rising[:1]) is None


def test_equal_cost_is_that_of_multiply_accumulates_and_attention_alone_has_no_phi():
    model = field.CONTESTANTS["GET 2+3Ax3+4"]
    shape, beside = loops.blocks(model), {"contestant": "", "num_pairs": 0, "parameters": 1}
    more = {"learning_rate": 1, "l1_to_teacher": 1.0, "curve": [{"step": 1, "distance": 1.0}]}
    get = {**run(2.0, 0), "blocks": shape, "macs": 100, **beside, **more}
    vits = [
        {**run(distance, depth), "macs": macs, **beside, **more, "contestant": f"ViT {depth}"}
        for depth, macs, distance in ((5, 60, 9.0), (10, 105, 4.0))
    ]
    row = loops.summed_up([*vits, get])[-1]
    assert row["over_vit_of_equal_macs"] == {"mean": 0.5, "worst": 0.5}
    assert row["phi"] is None


def test_what_is_worth_no_more_than_the_blocks_around_its_loop_has_no_phi():
    vits = [run(100 / depth, depth) for depth in (1, 10)]
    found = loops.phi_of([run(100 / 1.5, 2, 1, 4)], vits)
    assert found is not None
    assert [*found.values()] == [None] * 3


# ---------------------------------------------------------------- ours and the published training


def test_both_trainings_are_searched_one_setting_after_the_other(tmp_path, pairs, monkeypatch):
    search = {
        "ours": {"muon_learning_rate": (0.01, 0.005)},
        "published": {"learning_rate": (1e-3, 3e-3), "iterations": (2, 1)},
    }
    monkeypatch.setattr(ours, "SEARCHED", search)
    smoke, whole = RECIPES["smoke"], RECIPES["digits"].students["digits"]
    student = replace(
        smoke.students["smoke"],
        max_train_steps=4000,
        frechet_weight=1.0,
        feature_network=whole.feature_network,
        real_images=whole.real_images,
    )
    monkeypatch.setitem(RECIPES, "smoke", replace(smoke, students={"smoke": student}))
    config = ours.OursConfig(
        output_dir=tmp_path,
        recipe="smoke",
        pairs=pairs,
        seeds=(0,),
        repeats=1,
        max_train_steps=6,
        evaluate_steps=6,
        images=32,
    )
    ours.main(config)
    found = json.loads((tmp_path / "ours.json").read_text())["trainings"]
    assert [run["muon_learning_rate"] for run in found["ours"]["search"]] == [0.01, 0.005]
    trials = found["published"]["search"]
    assert [(t["learning_rate"], t["iterations"]) for t in trials[:2]] == [(1e-3, 2), (3e-3, 2)]
    best = min(trials[:2], key=lambda trial: trial["best"])["learning_rate"]
    assert [(t["learning_rate"], t["iterations"]) for t in trials[2:]] == [(best, 2), (best, 1)]
    assert found["published"]["runs"][0]["learning_rate"] == best

    won = found["ours"]["runs"][0]["muon_learning_rate"]
    [whole] = found[ours.WHOLE]["runs"]
    assert whole["muon_learning_rate"] == won
    assert whole["time_of_a_step"] > 1
    assert whole["judges"] != found["ours"]["runs"][0]["judges"]


def test_every_phase_is_shortened_alike():
    whole = RECIPES["digits"].students["digits"]
    half = ours.shortened(whole, whole.max_train_steps // 2)
    assert half.frechet_steps * 2 == whole.frechet_steps
    assert half.frechet_images * 2 == whole.frechet_images


def test_the_published_training_is_published_but_for_a_warm_up_and_clipping():
    base = RECIPES["digits"].students["digits"]
    training = ours.published(base)
    reference = RECIPES["cifar10"].students["cifar10-get-b"]
    for name in ("optimizer", "adam_beta2", "iterate_decay", "loss", "ema_decay", "learning_rate"):
        assert getattr(training, name) == getattr(reference, name)
    for name in ("map", "z0", "iterations"):
        assert ours.value(training, name) == ours.value(reference, name)
    assert training.window_share == 0


def test_a_setting_is_changed_where_it_lives():
    base = RECIPES["digits"].students["digits"]
    assert ours.changed(base, "learning_rate", 1.0).learning_rate == 1.0
    changed = ours.changed(replace(base, model=ViTModel(depth=3)), "depth", 4)
    assert ours.value(changed, "depth") == 4
