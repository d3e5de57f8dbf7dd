"""The frontier of certified smoothing: what certify.py writes is what the library certifies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.files import write_json
from data.real import real_images
from get.errors import InputError
from get.models.image_classifier import EquilibriumClassifier, ExplicitClassifier
from get.robustness import certify
from pipeline.benchmarks import frontier
from pipeline.benchmarks.labelling import ADAPTIVE, FIXED, TWIN, label_images, ways
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_classify import CertifyConfig, certifications

from .processes import completed

SMALL = {"width": 8, "heads": 2}
NUMBERS = {"num_images": 2, "num_trials": 20, "num_selection": 4, "chains": 8, "num_attacked": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small untrained classifiers of digits."""
    folder = tmp_path_factory.mktemp("classifiers")
    for name, kind in (("model", EquilibriumClassifier), ("twin", ExplicitClassifier)):
        torch.manual_seed(0)
        kind(**SMALL).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def found(models: Path) -> tuple[CertifyConfig, list]:
    """The labels of two images in all ways."""
    output = models / "out"
    config = CertifyConfig(model=models / "model", output_dir=output, **NUMBERS)
    model = EquilibriumClassifier.from_pretrained(config.model, use_safetensors=True).eval()
    images, truth = (x[:2] for x in real_images("digits", "held_out"))
    labels = list(label_images(model, None, images, config, lambda: None))
    return config, [model, images, truth, labels]


def test_a_row_is_what_the_library_certifies(found):
    config, (model, images, truth, labels) = found
    table, rows = ways(config), frontier.rows_of(labels, truth, config)
    assert {row["name"] for row in rows} == table.keys()
    given = {"sigma": config.sigma, "trials": 20, "selection": 4, "alpha": config.alpha}
    for name, audits in ((FIXED, 0), ("truncated 3", 0), ("serial 1", 4), ("clean 3", 4)):
        for bound in ("stated", "audited") if audits else (None,):
            certificates = [
                certify(model, image, index=i, how=table[name], audits=audits,
                        bound=bound or "audited", **given)
                for i, image in enumerate(images)
            ]  # fmt: skip
            row = next(r for r in rows if (r["name"], r["bound"]) == (name, bound)
                       and r["audits"] == audits)  # fmt: skip
            right = [c.radius * (c.label == t) for c, t in zip(certificates, truth, strict=True)]
            assert row["average_radius"] == pytest.approx(float(sum(right)) / 2)
            assert row["evaluations"] == sum(c.evaluations for c in certificates) / 2


def test_only_labels_of_a_copy_alone_are_counted_without_an_audit_and_called_sound(found):
    config, (_, _, truth, labels) = found
    for row in frontier.rows_of(labels, truth, config):
        remembers = row["name"].startswith(("clean", "serial"))
        assert row["sound"] == (not remembers or row["bound"] is not None)


def row(name: str, evaluations: float, certified: list[float], **changes) -> dict:
    values = dict(zip(map(str, frontier.RADII), certified, strict=True))
    given = {"cpu_seconds": evaluations, "most_radius": 1.1, "sound": True}
    return {"name": name, "evaluations": evaluations, "certified": values, **given, **changes}


def test_the_best_way_is_sound_and_loses_at_most_a_point_at_every_radius():
    full = [0.9, 0.8, 0.7, 0.6, 0.5, 0.0, 0.0]
    less = [value and value - 0.02 for value in full]
    rows = [
        row(FIXED, 3000.0, full),
        row("good", 300.0, [value and value - 0.005 for value in full]),
        row("cheap", 200.0, less),
        row("cut", 150.0, [0.9, 0.8, 0, 0, 0, 0, 0], most_radius=0.4),
        row("unsound", 100.0, full, sound=False),
        row(TWIN, 0.0, full),
    ]
    assert frontier.compare(rows)["name"] == "good"
    speeds = {r["name"]: (r["speed"], round(r["loss"], 3)) for r in rows}
    assert speeds["good"] == (10, 0.5)
    assert speeds["cut"] == (20, 0)
    assert speeds[TWIN] == (None, 0)


def test_the_script_certifies_continues_and_refuses_other_settings(models, tmp_path, here):
    flags = [x for k, v in NUMBERS.items() for x in (f"--{k}", v)]
    command = "certify", "--model", models / "model", "--twin", models / "twin", *flags
    arguments = *command, "--output_dir", tmp_path / "out"
    completed(here(*arguments))
    figures = json.loads((tmp_path / "out" / "certified.json").read_text())
    assert {FIXED, "truncated 1", "serial 1", TWIN} <= {row["name"] for row in figures["rows"]}
    assert figures["rows"][0]["evaluations"] == 30 * 24
    assert str(tmp_path) not in json.dumps(figures)
    assert (tmp_path / "out" / "certified.md").read_text().strip() == frontier.markdown(figures)
    kept = tmp_path / "out" / "labels" / "00001.safetensors"
    before = kept.stat().st_mtime_ns
    completed(here(*arguments))
    assert kept.stat().st_mtime_ns == before
    for changes, words in (
        (("--sigma", 1.0), "expected labels of these settings"),
        (("--model", tmp_path), "expected an image classifier in"),
        (("--model", models / "twin"), "expected an EquilibriumClassifier in"),
        (("--real_images", "photos"), "expected images of (1, 8, 8)"),
    ):
        result = here(*arguments, *changes)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert words in result.err


def test_numbers_that_cannot_be_are_refused():
    config = next(iter(certifications(RECIPES).values()))
    changes: dict[str, Any] = {"alpha": 1.0, "audit_shares": (0.0,), "num_trials": 0, "sigma": 0.0}
    for name, value in changes.items():
        with pytest.raises(InputError, match=f"expected {name}"):
            replace(config, **{name: value})


def test_the_ways_asked_for_are_measured_with_those_they_are_compared_with():
    config = next(iter(certifications(RECIPES).values()))
    assert list(ways(replace(config, ways=("serial 2", FIXED)))) == [FIXED, ADAPTIVE, "serial 2"]
    assert ways(config).keys() < ways(replace(config, full=True)).keys()
    with pytest.raises(InputError, match=r"expected ways among fixed 30, .*, got serial 9"):
        ways(replace(config, ways=("serial 9",)))


def test_every_equilibrium_classifier_of_a_recipe_is_certified_with_its_twin():
    table = certifications(RECIPES)
    assert table.keys() >= {"digits", "photos"}
    assert table["digits"].twin == Path("runs/digits-classifier-explicit")


def test_documents_and_reports_show_what_was_certified(tmp_path):
    row = {"name": FIXED, "bound": None, "audits": 0, "sound": True, "evaluations": 18_000.0}
    row |= {"speed": 1.0, "speed_seconds": 1.0, "certified": {"0.0": 0.91}, "average_radius": 0.5}
    row |= {"disagreement": 0.0}
    settings = {"sigma": 0.5, "alpha": 0.001, "num_selection": 100, "num_trials": 500}
    figures = {"settings": settings, "images": 397, "rows": [row], "largest_radii": []}
    assert frontier.section_of_certificates(None) == []
    assert frontier.section_of_certificates(tmp_path) == []
    write_json(tmp_path / "certified" / "certified.json", figures)
    section = "\n".join(frontier.section_of_certificates(tmp_path))
    assert "397 held-out images, sigma 0.5, alpha 0.001" in section
    assert "| fixed 30 | 18,000 | 1.0x | 1.0x | 91.0 | 0.500 | 0.0% |" in section
    tables = frontier.tables_of_certificates({"certified-votes", "other"}, tmp_path)
    assert tables.keys() == {"certified-votes"}
