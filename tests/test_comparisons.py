"""What is compared over seeds is alike but for what is named, and is summed up rightly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.files import write_json
from get.errors import InputError
from pipeline.benchmarks import seeds, steps
from pipeline.benchmarks.table import BENCHMARKS
from pipeline.jobs.tables import renewed
from pipeline.recipes import RECIPES
from pipeline.recipes.comparisons import COMPARISONS
from pipeline.recipes.recipe import simplest
from pipeline.recipes.settings_train import GETModel, TrainConfig, ViTModel
from pipeline.recipes.table import costs
from pipeline.training.step import TrainingStep

MEASURED = Path(__file__).parents[1] / "docs" / "measurements" / "benchmarks" / "steps.json"
GET, *VITS = COMPARISONS["claim"]
FREE = {"output_dir": Path(), "seed": 0, "max_train_steps": 1, "validation_steps": 1}


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_training_runs_with_three_seeds_and_nothing_else_differs(name: str):
    students = RECIPES[name].students
    assert next(iter(students)) == name  # launch.sh samples it
    assert len(students) == 3 * len(COMPARISONS[name])
    for training in COMPARISONS[name]:
        runs = training.seeds().values()
        assert [c.seed for c in runs] == [0, 1, 2]
        assert len({replace(c, seed=0, output_dir=Path()) for c in runs}) == 1
    assert [c.output_dir.name for c in students.values()] == list(students)
    evaluate = RECIPES[name].evaluate
    assert evaluate is not None
    assert evaluate.runs == tuple(c.output_dir for c in students.values())


@pytest.mark.parametrize("images", ["digits", "photos"])
def test_ours_is_the_simplest_recipe_and_the_other_published_but_for_schedule_and_average(
    images: str,
):
    ours, adapted = (t.config for t in COMPARISONS[f"ours-{images}"])
    recipe = simplest(RECIPES[images].students[images])
    watched = {"feature_network": None, "real_images": None}
    assert replace(ours, **FREE) == replace(recipe, **watched, **FREE)
    published = RECIPES["cifar10"].students["cifar10-get-b"]
    for name in ("optimizer", "adam_beta2", "iterate_decay", "loss", "global_batch_size"):
        assert getattr(adapted, name) == getattr(published, name)
    for name in ("map", "z0", "iterations"):
        assert getattr(adapted.model, name) == getattr(published.model, name)
    assert isinstance(adapted.model, GETModel)
    given = replace(adapted.model, map="anchored", z0="injection", iterations=3)
    assert given == ours.model
    assert adapted.lr_warmup_steps < adapted.max_train_steps


def test_vits_have_1_3_and_5_times_the_parameters_and_the_rest_of_gets_settings():
    size, _ = costs(GET.config.model, "digits")
    for vit, times in zip(VITS, (1, 1, 3, 3, 5, 5), strict=True):
        found, _ = costs(vit.config.model, "digits")
        assert found / size == pytest.approx(times, rel=0.06)
        assert replace(vit.config, model=GET.config.model, **FREE) == replace(GET.config, **FREE)
        if vit.equal == "steps":
            assert vit.config.max_train_steps == GET.config.max_train_steps


@pytest.mark.skipif(not MEASURED.exists(), reason="steps.json is not measured yet")
@pytest.mark.parametrize("name", COMPARISONS)
def test_equal_time_is_what_was_measured(name: str):
    measured = json.loads(MEASURED.read_text())["comparisons"][name]
    first, *others = COMPARISONS[name]
    for training in (t for t in others if t.equal == "time"):
        fraction = training.config.max_train_steps / first.config.max_train_steps
        assert fraction * measured[training.name]["cpu"]["ratio"] == pytest.approx(1, rel=0.15)


def tiny(config: TrainConfig) -> TrainConfig:
    assert isinstance(config.model, GETModel | ViTModel)
    return replace(config, global_batch_size=2, model=replace(config.model, width=8, heads=1))


def test_steps_are_timed_and_divided_by_the_first(tmp_path, monkeypatch):
    some = *COMPARISONS["ours-digits"][:2], *VITS[:2]
    monkeypatch.setitem(
        COMPARISONS, "ours-digits", tuple(replace(t, config=tiny(t.config)) for t in some)
    )
    config = steps.StepsConfig(output_dir=tmp_path, comparisons=("ours-digits",), repeats=2)
    steps.main(config)
    found = json.loads((tmp_path / "steps.json").read_text())["comparisons"]["ours-digits"]
    assert list(found) == ["ours-digits", "ours-digits-adapted", "claim-vit-1x-time"]
    assert found["ours-digits"]["cpu"]["ratio"] == found["ours-digits"]["wall"]["ratio"] == 1
    assert all(clock["seconds"] > 0 for row in found.values() for clock in row.values())


def test_a_timed_step_trains_as_train_py_does():
    training = tiny(COMPARISONS["ours-digits"][1].config)
    timed = steps.step_of(training, RECIPES["ours-digits"].manifest())
    step = timed.func
    assert isinstance(step, TrainingStep)
    average = step.updates.average
    before = [p.clone() for p in step.student.parameters()]
    averages = [p.clone() for p in average.parameters()]
    timed()
    timed()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, step.student.parameters(), strict=True)
    ]
    moved = [not torch.equal(a, b) for a, b in zip(averages, average.parameters(), strict=True)]
    assert any(changed)
    assert any(moved)
    assert all(p.grad is None for p in step.student.parameters())


def evaluation(tmp_path: Path, name: str, fids: dict[str, list[float]]) -> seeds.SeedsConfig:
    """Write made-up measurements of a comparison, a list of FIDs per training."""
    for training in COMPARISONS[name]:
        for (run, config), fid in zip(training.seeds().items(), fids[training.name], strict=True):
            figures = {"macs": 2e6, "l1_to_teacher": 0.1, "training": {"fid": fid}}
            measured = {
                "inputs": {"weights": run, "seed": 0},
                "parameters": 240_000 if "vit" not in run else 100_000 * int(run[10]),
                "train_steps": config.max_train_steps,
                "train_seconds": 60.0,
            }
            if "vit" in run:
                measured |= figures
            else:
                worse = figures | {"training": {"fid": 2 * fid}}
                measured |= {"default_iterations": 3, "by_iterations": {"3": figures, "4": worse}}
            write_json(tmp_path / name / "evaluation" / f"{run}.json", measured)
    return seeds.SeedsConfig(
        name=name.split("-")[0], comparisons=(name,), runs=tmp_path, output_dir=tmp_path / "out"
    )


OURS = {
    "ours-digits": [2.0, 4.0, 6.0],
    "ours-digits-adapted": [20.0, 10.0, 30.0],
}


def test_seeds_are_summed_up(tmp_path, capsys):
    seeds.main(evaluation(tmp_path, "ours-digits", OURS))
    found = json.loads((tmp_path / "out" / "ours.json").read_text())
    rows = found["comparisons"]["ours-digits"]["trainings"]
    assert rows["ours-digits"]["fid"] == {"seeds": [2, 4, 6], "mean": 4, "min": 2, "max": 6}
    assert rows["ours-digits"]["fid_by_iterations"] == {"3": [2, 4, 6], "4": [4, 8, 12]}
    assert rows["ours-digits-adapted"]["first_beside_it"] == {"means": 0.2, "worst": 0.4}
    assert found["hardware"]
    table = capsys.readouterr().out
    assert "| 20.0, 10.0, 30.0 | 20.0 | 0.20x, 0.40x |" in table
    assert (tmp_path / "out" / "ours.png").stat().st_size > 0


def test_the_claim_has_a_table_that_documents_show(tmp_path):
    config = evaluation(tmp_path, "claim", {t.name: [1.0, 2.0, 3.0] for t in (GET, *VITS)})
    seeds.main(config)
    markdown = BENCHMARKS["claim"].markdown
    assert markdown is not None
    table = markdown(json.loads((tmp_path / "out" / "claim.json").read_text()))
    text = "before\n<!-- table:claim -->\n<!-- end -->\nafter <!-- table:x -->kept<!-- end -->\n"
    lines = renewed(text, {"claim": table}).splitlines()
    assert lines[-1] == "after <!-- table:x -->kept<!-- end -->"
    assert len(lines) == 2 + 2 + 2 + 7
    assert "| digits | ViT 5x, equal time | 0.50 M |" in lines[-3]
    assert (tmp_path / "out" / "claim.png").stat().st_size > 0


def test_measurements_of_different_evaluations_or_lengths_are_refused(tmp_path):
    config = evaluation(tmp_path, "ours-digits", OURS)
    path = tmp_path / "ours-digits" / "evaluation" / "ours-digits-seed1.json"
    good = json.loads(path.read_text())
    write_json(path, good | {"inputs": {"weights": "", "seed": 1}})
    with pytest.raises(InputError, match="expected one evaluation of all students of ours-digits"):
        seeds.main(config)
    write_json(path, good | {"train_steps": 7})
    steps = COMPARISONS["ours-digits"][0].config.max_train_steps
    with pytest.raises(InputError, match=f"ours-digits-seed1 trained for {steps} steps, got 7"):
        seeds.main(config)
