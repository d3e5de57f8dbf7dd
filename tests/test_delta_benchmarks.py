"""The sweeps over shortcuts at their smallest: they run, and their figures are what they say."""

import json

import pytest
import torch

from data import SHIPPED
from data.real.photos import photograph, shrink
from get import GETPipeline
from get.equilibrium import DeltaMemory
from get.errors import InputError
from pipeline.benchmarks import delta
from pipeline.benchmarks import photograph as picture
from pipeline.benchmarks.savings import best_of, compare
from pipeline.benchmarks.shortcuts import Cell, Grid
from pipeline.benchmarks.table import sections_of_benchmarks
from pipeline.benchmarks.wider import widened

from .problems import normal, seeded, tiny_get, tiny_vit

SMALL = Grid(
    iterations=4,
    fewer=(2,),
    tolerances=(0.3,),
    thresholds=(0.0, 0.5),
    units=("element", "token"),
    mixed=(),
    shorter=((3, 0.5),),
)


def row(method: str, work: float, loss: float, unit: str | None = None) -> dict:
    settings = {"iterations": 4, "tol": 0.0, "threshold": 0.0, "speedup": 1.0, "cpu_speedup": 1.0}
    figures = {"macs": [work, work], "change": {"a": [loss, loss], "b": [2 * loss, 0.0]}}
    return {"method": method, "unit": unit, **settings, **figures}


def test_the_best_setting_saves_most_at_the_allowed_loss_and_meets_others_at_its_own():
    rows = [
        *(row("dense", 110, 0.0), row("fewer", 60, 0.01), row("fewer", 40, 0.03)),
        *(row("delta", 30, 0.015, "token"), row("delta", 20, 0.021, "token")),
    ]
    compare(rows, outside=10)
    best = best_of(rows, allowed=0.02)
    assert best["fewer"]["row"] == 1
    assert best["fewer"]["saved"] == pytest.approx(1 - 60 / 110)
    assert best["fewer"]["saved_in_solve"] == pytest.approx(0.5)
    assert best["delta"]["row"] == 3
    assert best["delta"]["worst_change"] == 0.015
    assert best["delta"]["instead"] == {"dense": 110 / 30, "fewer": 2.0}


def test_a_sweep_over_a_get_counts_work_and_keeps_threshold_0_as_the_dense_solve(tmp_path, capsys):
    GETPipeline(tiny_get(channels=1, num_classes=10)).save_pretrained(tmp_path / "model")
    config = delta.DeltaConfig(
        model=tmp_path / "model",
        feature_networks=(SHIPPED / "digits-features",),
        output_dir=tmp_path,
        num_images=8,
        grid=SMALL,
        batch_size=4,
        turns=1,
        wide_factor=2,
        wide_batch=2,
    )
    delta.main(config)
    found = json.loads((tmp_path / "delta.json").read_text())
    rows = {(r["method"], r["threshold"]): r for r in found["rows"]}
    dense, fewer = rows["dense", 0], rows["fewer iterations", 0]
    assert fewer["saved_in_solve"] == pytest.approx(0.5)
    for unit in ("element", "token"):
        exact, rough = rows[f"delta, {unit}", 0], rows[f"delta, {unit}", 0.5]
        assert exact["macs"] == pytest.approx(dense["macs"], rel=1e-3)  # some stand still exactly
        assert abs(exact["change"]["digits-features"][0]) < 1e-3
        assert 0.1 < rough["saved_in_solve"] <= 0.5  # two of four evaluations are in full
        assert found["kept"][unit]["0.5"][0] == found["kept"][unit]["0.5"][-1] == 1
    assert [r["method"] for r in found["wide"]["rows"]] == ["dense", *found["best"]]
    assert (tmp_path / "delta.png").stat().st_size > 0
    table = capsys.readouterr().out.strip().partition("\n")[2]
    title, page, section = sections_of_benchmarks(tmp_path)
    assert (title, section) == ("## Skipping small changes", table)
    assert "docs/delta.md" in page
    GETPipeline(tiny_vit(channels=1, num_classes=10)).save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="expected a GET"):
        delta.main(delta.DeltaConfig(model=tmp_path / "vit", output_dir=tmp_path))


@pytest.mark.parametrize("options", [{}, {"num_classes": 3, "coda_depth": 1, "heads": 4}])
def test_a_widened_get_makes_the_same_images_and_skips_the_same_tokens(options):
    model, noise = tiny_get(**options), normal(3)
    labels = torch.arange(3) if options else None
    wide, memories = widened(model, 3), [DeltaMemory(0.3) for _ in range(2)]
    assert wide.width == 48
    with torch.no_grad():
        torch.testing.assert_close(wide(noise, labels), model(noise, labels), rtol=0, atol=1e-4)
        for network, memory in zip((model, wide), memories, strict=True):
            network(noise, labels, iterations=5, delta=memory)
    parts = [[a / b for a, b in zip(m.macs, m.dense_macs, strict=True)] for m in memories]
    assert parts[0] == pytest.approx(parts[1])
    assert min(parts[0]) < 1


def test_a_photograph_is_fitted_and_its_solves_are_compared(tmp_path):
    config = picture.PhotographConfig(
        output_dir=tmp_path,
        seeds=(1,),
        width=8,
        frequencies=4,
        steps=10,
        train_pixels=64,
        train_iterations=2,
        grid=SMALL,
        turns=1,
        wide_factor=2,
        single_pixels=2,
    )
    picture.main(config)
    found = json.loads((tmp_path / "photograph.json").read_text())
    first, dense = found["rows"][0]["psnr"]["chelsea"][0], found["rows"][0]["macs"][0]
    assert first > 10
    assert dense == 4 * 8 * 8 + 2 * 4 + 2 * 4 * 8 + 8 * 3  # state, waves, inject, colour
    assert [r["method"] for r in found["single"]] == ["dense", *found["best"]]
    assert (tmp_path / "photograph.png").stat().st_size > 0


def test_a_widened_picture_has_the_same_colours():
    config = picture.PhotographConfig(width=8, frequencies=4)
    model = picture.Picture(config, seeded(0))
    points, cell = picture.pixels_of("chelsea")[0][:9], Cell(method="dense", iterations=5)
    with torch.no_grad():
        made = [
            cell.make(m, points, None).images for m in (model, picture.widened(config, model, 3))
        ]
    torch.testing.assert_close(made[1], made[0])


def test_a_whole_photograph_is_the_shrunk_one():
    from skimage.data import chelsea  # the pixels that come with the package

    whole = photograph("chelsea")
    assert whole.shape == (3, 150, 225)
    pixels = torch.from_numpy(shrink(chelsea(), 2)).permute(2, 0, 1)
    assert torch.allclose((whole + 1) * 127.5, pixels.float(), atol=1e-3)
