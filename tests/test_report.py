"""The table of a recipe: what it shows of several feature networks, and that it marks training."""

import json
from pathlib import Path

import pytest

from data.files import read_json
from pipeline import report
from pipeline.evaluate import trained_on

MEASURED = Path(__file__).parents[1] / "docs" / "measurements" / "equilibria"


def models(networks: int) -> list[report.Model]:
    """Return two committed measurements, with figures of so many networks."""
    found = [read_json(MEASURED / f"{name}.json") for name in ("teacher", "equilibria")]
    for model in found:
        for figures in (model, *model.get("by_iterations", {}).values()):
            figures.pop("networks", None)
            if networks and "training" in figures:
                fid = figures["training"]["fid"]
                figures["networks"] = {
                    f"net-{i}": {"fid": fid * (i + 1), "fid_of_real": 2.0} for i in range(networks)
                }
                figures["fdr"] = 1000 - fid  # the opposite of FID
    return found


def table(found: list[report.Model]) -> list[dict[str, str]]:
    header, *rows = report.table_rows(found)
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("networks", [0, 1])
def test_with_one_network_the_table_is_what_it_was(networks):
    rows = table(models(networks))
    assert not {"FDr", "FD in the judges"} & rows[0].keys()
    assert not any("FDr" in part for part in report.at_every_number_of_iterations(models(networks)))


def test_with_several_networks_rows_have_fd_in_each_and_fdr():
    first = models(3)[0]
    fid = first["training"]["fid"]
    row = table([first])[0]
    assert row["FD in the judges"] == f"{2 * fid:.3f} / {3 * fid:.3f}"
    assert row["FDr"] == f"{1000 - fid:.3f}"
    (_, by_iterations) = report.at_every_number_of_iterations(models(3))
    assert "| FD in the judges | FDr |" in by_iterations
    remark = report.summary(models(3))
    assert "net-0, which training may use" in remark
    assert "net-1, net-2" in remark


def test_the_best_number_of_iterations_is_that_of_the_lowest_fdr():
    alone, judged = (models(networks)[1] for networks in (1, 3))
    fids = {k: figures["training"]["fid"] for k, figures in alone["by_iterations"].items()}
    assert report.best_iterations(alone) == min(fids, key=lambda k: fids[k])
    assert report.best_iterations(judged) == max(fids, key=lambda k: fids[k])


def test_what_was_trained_on_the_network_is_marked(tmp_path):
    settings = {"feature_network": "weights/net-0", "frechet_weight": 0.0}
    for weight, expected in ((0.0, None), (0.1, "net-0")):
        settings["frechet_weight"] = weight
        (tmp_path / "run.json").write_text(json.dumps({"config": settings}))
        assert trained_on(tmp_path) == expected
    teacher, student = models(3)
    student["trained_on"] = "net-0"
    rows = table([teacher, student])
    assert ["trained on" in row["FID training"] for row in rows] == [False, *[True] * len(rows[1:])]
