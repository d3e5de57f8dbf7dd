"""The verb that checks theory: every analysis runs at a small size and writes what tables show."""

import json

from get.analysis import RELU
from pipeline.analyses.limits import limits
from pipeline.analyses.settings import NngpConfig
from pipeline.analyses.table import ANALYSES


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
        *("--real_images", pictures),
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
