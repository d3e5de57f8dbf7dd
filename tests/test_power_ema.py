"""Power-function averages, and others made of stored ones: formulas, weights, the command."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get.ema import PowerEMA
from get.errors import InputError
from get.noise import draw
from get.pipeline_get import GETPipeline
from get.power_functions import WIDEST, Profile, exponent, fit, inner_product
from pipeline.conversions.ema import add_up, find
from pipeline.jobs import averages
from pipeline.recipes.settings_make import TrainingConfig

from .problems import seeded, tiny_get
from .processes import completed
from .runs import EVERY, STEPS, WEIGHTS, assert_same, checkpoints, writing

WIDTHS = 0.05, 0.10
NODES, SHARES = np.polynomial.legendre.leggauss(200)  # exact for polynomials of degree 399


def integral(function, end: float) -> float:
    return float((SHARES * function((NODES + 1) * end / 2)).sum() * end / 2)


def profile(p: Profile):
    gamma = exponent(p.sigma_rel)
    return lambda t: np.where(t <= p.step, (gamma + 1) * t**gamma / p.step ** (gamma + 1), 0.0)


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.25, WIDEST])
def test_a_profile_has_area_1_and_the_width_it_was_asked_for(sigma_rel):
    weights = profile(Profile(7, sigma_rel))
    assert integral(weights, 7) == pytest.approx(1, rel=1e-7)
    mean = integral(lambda t: t * weights(t), 7)
    variance = integral(lambda t: (t - mean) ** 2 * weights(t), 7)
    assert variance**0.5 == pytest.approx(sigma_rel * 7, rel=1e-7)


def test_exponents_are_those_of_the_paper():
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)
    assert exponent(WIDEST) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan")])
def test_a_width_that_no_power_function_has_is_refused(sigma_rel):
    with pytest.raises(InputError, match=r"sigma_rel above 0 and at most 0\.2887"):
        exponent(sigma_rel)
    with pytest.raises(InputError, match="ema_sigma_rel of different numbers"):
        TrainingConfig(output_dir=Path(), ema_sigma_rel=(0.1, sigma_rel))


@pytest.mark.parametrize("a", [Profile(10, 0.05), Profile(7, 0.2)])
@pytest.mark.parametrize("b", [Profile(10, 0.10), Profile(3, 0.05)])
def test_inner_products_are_integrals_of_products(a, b):
    end = min(a.step, b.step)
    expected = integral(lambda t: profile(a)(t) * profile(b)(t), end)
    assert inner_product(a, b) == inner_product(b, a) == pytest.approx(expected, rel=1e-7)


def test_a_fit_is_a_stored_average_itself_where_there_is_one():
    stored = [Profile(step, width) for step in (50, 100) for width in WIDTHS]
    chosen = fit(stored, stored[3])
    assert chosen.coefficients == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert chosen.error < 1e-6


def test_a_fits_error_is_the_distance_of_its_profile():
    stored = [Profile(step, width) for step in range(25, 101, 25) for width in WIDTHS]
    wanted = Profile(100, 0.075)
    chosen = fit(stored, wanted)

    def difference(t):
        parts = [c * profile(p)(t) for c, p in zip(chosen.coefficients, stored, strict=True)]
        return sum(parts) - profile(wanted)(t)

    # in pieces: a profile ends at its step
    ends = [0, 25, 50, 75, 100]
    square = sum(integral(lambda t, a=a: difference(a + t) ** 2, b - a) for a, b in pairwise(ends))
    norm = integral(lambda t: profile(wanted)(t) ** 2, 100)
    assert chosen.error == pytest.approx((square / norm) ** 0.5, rel=1e-6)
    assert sum(chosen.coefficients) == pytest.approx(1)
    assert chosen.error < 0.04


@pytest.mark.parametrize(("files", "error"), [(16, 0.004), (32, 0.001)])
def test_the_files_that_a_long_run_keeps_are_enough(files, error):
    steps = [1000 * (i + 1) for i in range(files)]
    stored = [Profile(step, width) for step in steps for width in WIDTHS]
    assert error / 2 < fit(stored, Profile(steps[-1], 0.075)).error < error


# ---------------------------------------------------------------- averages of weights


def test_the_weight_of_a_step_is_the_integral_of_the_profile_over_it():
    sigma_rel, steps = 0.15, 9
    ema = PowerEMA(nn.Linear(1, 1).double(), sigma_rel)
    values = torch.randn(steps, generator=seeded(0), dtype=torch.float64)
    for step, value in enumerate(values.tolist(), 1):
        model = nn.Linear(1, 1).double()
        nn.init.constant_(model.weight, value)
        ema.update(model, step)
    power = exponent(sigma_rel) + 1
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** power
    assert ema.model.weight.item() == pytest.approx(float((edges.diff() * values).sum()))


def test_an_average_made_of_stored_ones_is_close_to_the_one_taken_directly(tmp_path):
    """A real training: AdamW on a small GET, 200 steps, a file every 10."""
    torch.manual_seed(0)
    model = tiny_get()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    kept = {width: PowerEMA(model, width) for width in WIDTHS}
    direct = PowerEMA(model, 0.075)
    for step in range(1, 201):
        noise = torch.randn(8, *model.image_shape, generator=seeded(step))
        (model(noise) - noise.flip(-1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for ema in (*kept.values(), direct):
            ema.update(model, step)
        if step % 10 == 0:
            parameters = {w: dict(ema.model.named_parameters()) for w, ema in kept.items()}
            with torch.no_grad():
                averages.save(tmp_path, step, parameters, 10)
    stored = find(averages.saved(tmp_path))
    assert len(stored) == 40
    made = add_up(stored, fit([x.profile for x in stored], Profile(200, 0.075)).coefficients)

    def distance(weights) -> float:
        pairs = [(weights[name] - p, p) for name, p in direct.model.named_parameters()]
        squares = [(d.square().sum(), p.square().sum()) for d, p in pairs]
        return float(sum(d for d, _ in squares) / sum(p for _, p in squares)) ** 0.5

    assert distance(made) < 3e-4  # float16 alone makes 2e-4
    assert distance(dict(kept[0.05].model.named_parameters())) > 10 * distance(made)


@pytest.mark.parametrize("newest", [1, 31, 32, 33, 64, 65, 1000])
def test_files_of_averages_are_thinned_out_evenly_and_the_newest_stays(newest):
    every = 5
    steps = range(every, newest * every + 1, every)
    one_by_one: set[int] = set()
    for step in steps:
        one_by_one = averages.kept({*one_by_one, step}, every)
        assert step in one_by_one
        assert len(one_by_one) <= averages.MOST
    assert one_by_one == averages.kept(steps, every)
    assert len(one_by_one) >= min(newest, averages.MOST // 2)
    gaps = {b - a for a, b in pairwise(sorted(one_by_one)[:-1])}
    assert len(gaps) <= 1


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def averaged(train, pairs) -> Path:
    """A run that has kept two averages."""
    run = pairs.with_name("averaged")
    completed(train(run, "--pairs", pairs, "--ema_sigma_rel", *WIDTHS))
    return run


def test_a_run_with_averages_goes_on_with_the_same_bits(train, pairs, averaged, tmp_path):
    command = tmp_path / "run", "--pairs", pairs, "--ema_sigma_rel", *WIDTHS
    train(*command, at=writing(8))
    assert checkpoints(tmp_path / "run") == [4]
    full = train(*command, file_bytes=4096)  # too few for the averages, which are written first
    assert full.codes == [1]
    assert "File too large; the last good checkpoint is" in full.err.splitlines()[-1]
    assert checkpoints(tmp_path / "run") == [4]
    completed(train(*command))
    assert_same(tmp_path / "run", averaged)
    assert list(averages.saved(averaged)) == [*range(EVERY, STEPS + 1, EVERY)]
    refused = train(*command[:-1])
    assert refused.codes == [2]
    assert "cannot begin later" not in refused.err  # other settings are refused before
    refused = train(*command[:-1], "--allow_config_change")
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert "expected ema_sigma_rel [0.05, 0.1] as from the first step on, got [0.05]" in refused.err


def test_the_command_writes_a_result_with_an_average_of_any_width(averaged, tmp_path, here):
    out = tmp_path / "out"
    given = "ema", "--run", averaged, "--sigma_rel"
    shown = completed(here("convert", *given, 0.08, "--output_dir", out)).out
    assert f"averages of 3 steps added up to sigma_rel 0.08 at step {STEPS}" in shown
    assert isinstance(GETPipeline.from_pretrained(out, use_safetensors=True), GETPipeline)
    source = json.loads((out / "source.json").read_text())
    assert sum(x["coefficient"] for x in source["averages"]) == pytest.approx(1)
    ours, theirs = load_file(out / WEIGHTS), load_file(averaged / WEIGHTS)
    assert ours.keys() == theirs.keys()

    completed(here("convert", *given, 0.05, "--output_dir", tmp_path / "tracked"))
    state = averaged / "checkpoints" / f"checkpoint-{STEPS}" / "state"
    tracked, exact = (
        load_file(tmp_path / "tracked" / WEIGHTS),
        load_file(state / "ema-0.05.safetensors"),
    )
    for name, value in exact.items():
        torch.testing.assert_close(tracked[name], value, rtol=1e-3, atol=1e-6)


def test_a_training_can_start_from_one_with_averages(train, pairs, averaged, tmp_path):
    checkpoint = averaged / "checkpoints" / f"checkpoint-{STEPS}"
    result = train(tmp_path / "run", "--pairs", pairs, "--init_from", checkpoint)
    assert "their average and the optimiser's moments in" in completed(result).out


@pytest.mark.slow
def test_a_teachers_average_is_made_in_the_same_way(tmp_path, here):
    few = "--max_train_steps", 6, "--checkpointing_steps", 2, "--ema_sigma_rel", *WIDTHS
    completed(here("train_teacher", "smoke", *few, "--output_dir", tmp_path / "run"))
    given = "ema", "--run", tmp_path / "run", "--sigma_rel", 0.07
    completed(here("convert", *given, "--output_dir", tmp_path / "out"))
    made, own = (open_teacher(tmp_path / x, Sampler(steps=2), "cpu") for x in ("out", "run"))
    noise, labels = draw(0, range(2), own.image_shape, own.num_classes)
    images = made(noise, labels)
    assert torch.isfinite(images).all()
    assert not torch.equal(images, own(noise, labels))


def test_what_cannot_be_averaged_is_refused_in_one_line(averaged, smoke, tmp_path, here):
    for run, width, what in (
        (smoke, 0.08, "train one with --ema_sigma_rel"),
        (averaged, 0.5, "sigma_rel above 0"),
    ):
        given = "ema", "--run", run, "--sigma_rel", width, "--output_dir", tmp_path / "out"
        refused = here("convert", *given)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert what in refused.err
    assert not (tmp_path / "out").exists()
