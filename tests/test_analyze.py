"""The verb that checks theory: every analysis runs at a small size and writes what tables show."""

import json

import pytest

from get import GETPipeline
from get.analysis import RELU
from get.errors import InputError
from pipeline.analyses.compared import compare
from pipeline.analyses.limits import limits
from pipeline.analyses.settings import CollapseConfig, NngpConfig
from pipeline.analyses.table import ANALYSES, sections_of_analyses
from pipeline.analyses.unequal import Cell, cells, training_set

from .problems import tiny_get


def test_finite_networks_meet_both_limits_within_their_band(tmp_path):
    config = NngpConfig(output_dir=tmp_path, depths=(1, 4), normality_draws=500)
    found = limits(config, RELU, (128,), 2**15, lambda: None)
    row = found["widths"][0]
    assert row["converged"] == row["draws"] == 256
    assert row["depths"]["equilibrium"]["to_limit"] < 1.5 * row["depths"]["equilibrium"]["band"]
    assert row["depths"]["1"]["to_its_depth"] < 1.5 * row["depths"]["1"]["band"]
    assert row["depths"]["1"]["to_limit"] > row["depths"]["1"]["to_its_depth"]
    assert found["depth_errors"]["1"] > found["depth_errors"]["4"] > 0


def test_nngp_runs_and_its_tables_show_what_it_found(tmp_path, here, pictures, monkeypatch):
    from pipeline.analyses import kernel_regression
    from pipeline.analyses import limits as parts

    for name, value in (("CONTRAST_WIDTHS", (8,)), ("CONTRAST_DRAWS", 20)):
        monkeypatch.setattr(parts, name, value)
    monkeypatch.setattr(kernel_regression, "WIDTHS", (16,))
    monkeypatch.setattr(kernel_regression, "DEPTHS", (1,))
    result = here(
        *("analyze", "nngp", "--activations", "relu", "--widths", 8, 16, "--states", 128),
        *("--normality_draws", 16, "--sets", 2, "--output_dir", tmp_path),
        *("--real_images", pictures, "--classifier_steps", 1),
    )
    assert result.codes == [0], result.err
    found = json.loads((tmp_path / "nngp.json").read_text())
    for table in ANALYSES["nngp"].tables.values():
        assert table(found) in result.out
    assert (tmp_path / "nngp.png").stat().st_size > 0
    regression = found["regression"]
    assert regression["training"] + regression["held_out"] == 40
    assert all(0 <= row["accuracy"] <= 1 for row in regression["rows"])


def test_unknown_activations_are_refused(here):
    result = here("analyze", "nngp", "--activations", "gelu")
    assert result.codes == [2]
    assert "expected activations among relu, erf, tanh, got gelu" in result.err


def test_collapse_trains_what_is_missing_and_its_tables_show_what_it_found(tmp_path, here):
    settings = (
        *("--ratios", 4, "--images", 12, "--seeds", 0, "--max_train_steps", 1),
        *("--points", 1, "--jobs", 1, "--output_dir", tmp_path / "collapse"),
    )
    result = here("analyze", "collapse", *settings)
    assert result.codes == [0], result.err
    found = json.loads((tmp_path / "collapse" / "collapse.json").read_text())
    title, _, *tables = sections_of_analyses(tmp_path)
    assert title == "## Neural collapse"
    assert len(tables) == len(ANALYSES["collapse"].tables)
    assert all(table in result.out for table in tables)
    assert (tmp_path / "collapse" / "collapse.png").stat().st_size > 0
    assert [run["kind"] for run in found["runs"]] == ["equilibrium", "explicit"]
    assert {run["training_images"] for run in found["runs"]} == {3 * 12 + 7 * 3}
    assert [("residual" in run["curve"][0]) for run in found["runs"]] == [True, False]

    # The same command repeats nothing; other settings need another folder.
    files = sorted((tmp_path / "collapse" / "trainings").glob("*seed*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    assert here("analyze", "collapse", *settings).codes == [0]
    after = [path.stat().st_mtime_ns for path in files]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False]
    assert (
        json.loads((tmp_path / "collapse" / "collapse.json").read_text())["rows"] == found["rows"]
    )
    result = here("analyze", "collapse", *settings, "--points", 2)
    assert result.codes == [2]
    assert "expected runs with these settings" in result.err


def test_a_seed_chooses_classes_and_images_which_twins_share(tmp_path):
    config = CollapseConfig(output_dir=tmp_path, images=20)
    cell = Cell("real", 3, 10)
    one, same, other = (training_set(config, cell, seed) for seed in (0, 0, 1))
    assert one.images.images.equal(same.images.images)
    assert one.majority != other.majority
    counts = one.images.labels.bincount().tolist()
    assert [c for c in range(10) if counts[c] == 20] == one.majority
    assert {counts[c] for c in one.minority} == {2}
    balanced = training_set(config, Cell("real", 0, 1), 0)
    assert balanced.images.labels.bincount().tolist() == [20] * 10
    assert not balanced.minority


def test_the_whole_grid_has_more_majority_classes_and_weight_decay(tmp_path):
    names = [cell.name for cell in cells(CollapseConfig(output_dir=tmp_path, full=True))]
    unequal = "real-3major-ratio10", "real-7major-ratio10"
    assert names == [
        *("real-balanced", *unequal),
        *("real-balanced-decay0.5", *(f"{name}-decay0.5" for name in unequal)),
    ]


def test_images_of_a_student_are_taken_only_where_their_class_is_clear(tmp_path):
    """That of a student that was never trained is not."""
    for classes, message in ((10, "expected 4 training images"), (None, "a class-conditional")):
        student = tmp_path / str(classes)
        GETPipeline(tiny_get(channels=1, num_classes=classes)).save_pretrained(student)
        config = CollapseConfig(
            output_dir=tmp_path, student=student, student_ratios=(2,), student_images=4
        )
        with pytest.raises(InputError, match=message):
            training_set(config, Cell("student", 3, 2), 0)


def test_too_many_majority_classes_and_too_few_images_are_refused(tmp_path, here):
    result = here("analyze", "collapse", "--majorities", 9, "--output_dir", tmp_path)
    assert result.codes == [2]
    assert "expected at most 8 majority classes of the 10" in result.err
    result = here("analyze", "collapse", "--ratios", 100, "--output_dir", tmp_path)
    assert result.codes == [2]
    assert "expected ratios that leave two images of a minority class" in result.err
    result = here("analyze", "collapse", "--images", 140, "--output_dir", tmp_path / "other")
    assert result.codes == [2]
    assert "expected 140 training images of every class in digits" in result.err


def test_differences_are_paired_by_seed_and_decided_by_their_interval():
    def run(kind: str, seed: int, nc1: float) -> dict:
        curve = [{"step": 5, "nc1": nc1, "accuracy": 0.5 + 0.1 * seed}]
        shape = {"source": "real", "majorities": 3, "ratio": 10, "parameters": 1}
        return {
            "cell": "c", "kind": kind, "seed": seed, "training_images": 9, "terminal_step": 5,
            "curve": curve, **shape,
        }  # fmt: skip

    runs = [run("equilibrium", s, 10 * s) for s in range(3)]
    runs += [run("explicit", s, 10 * s + 1 + 0.1 * s) for s in range(3)]
    row, twin = compare(runs)
    assert row["differences"]["nc1"] == {
        "mean": pytest.approx(-1.1),
        "half": pytest.approx(4.303 * 0.1 / 3**0.5),
        "better": "equilibrium",
    }
    assert row["differences"]["accuracy"]["better"] == "neither"
    assert row["figures"]["nc1"]["mean"] == 10
    assert "differences" not in twin
