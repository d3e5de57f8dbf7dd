"""What a training survives or refuses: bad data, a full disk, other pairs, unknown trackers."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from data.manifest import read_record, record_path, tar_path
from data.order import Order
from data.reader import read_shard

from .problems import Softsign
from .processes import Script, completed
from .runs import STEPS, assert_same, checkpoints, contents, metrics, writing
from .shards import PAIRS, write_pairs


@pytest.fixture(scope="module")
def undisturbed(train: Script, pairs: Path) -> Path:
    run = pairs.with_name("undisturbed")
    completed(train(run, "--pairs", pairs))
    return run


# ---------------------------------------------------------------- values that are not finite


def spoil(pairs: Path, index: int) -> None:
    """Let the first pixel of a pair be huge, whose square is infinite, and its record fit."""
    shard, place = divmod(index, PAIRS)
    pixels = read_shard(pairs, shard).images[place].numpy().tobytes()
    tar = tar_path(pairs, shard)
    data = tar.read_bytes().replace(pixels, b"\xff\xff\x7f\x7f" + pixels[4:])
    assert data != tar.read_bytes()
    tar.write_bytes(data)
    record = read_record(pairs, shard)
    assert record is not None
    fitting = replace(record, sha256=sha256(data).hexdigest())
    record_path(pairs, shard).write_text(json.dumps(vars(fitting)))


def test_an_infinite_loss_stops_at_its_step_and_names_its_pairs(train, tmp_path):
    pairs, run = write_pairs(tmp_path / "pairs", 5), tmp_path / "run"
    order = Order(source=pairs, shards=4, pairs_per_shard=PAIRS, seed=0, streams=4, batch_size=16)
    seen, then = order.indices(0), order.indices(1)
    bad = next(index for index in then if index not in seen)
    spoil(pairs, bad)
    stopped = train(run, "--pairs", pairs, "--checkpointing_steps", 1)
    assert (stopped.codes, stopped.err.splitlines()[-1].count("train: expected")) == ([1], 1)
    assert "loss inf" in stopped.err
    assert f"in step 2 (pairs {', '.join(map(str, then[:4]))}, ...: all are in" in stopped.err
    assert f"the last good checkpoint is {run}/checkpoints/checkpoint-1;" in stopped.err
    report = json.loads((run / "not-finite.json").read_text())
    assert (report["step"], report["pairs"]) == (2, then)
    assert bad in report["pairs"]
    assert checkpoints(run) == [1]


def test_a_residual_that_explodes_is_reported_once(train, pairs, tmp_path):
    model = "--model.map", "plain", "--model.iterations", 1, "--window_share", 0
    wild = *model, "--optimizer", "adamw", "--learning_rate", 1
    shown = completed(train(tmp_path / "run", "--pairs", pairs, *wild))
    assert shown.out.count("the iteration runs away from its fixed point") == 1


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("file_bytes", [4096, 512])  # too few for weights, for metrics.jsonl
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    file_bytes, train, pairs, undisturbed, tmp_path
):
    run = tmp_path / "run"
    train(run, "--pairs", pairs, at=writing(8))
    full = train(run, "--pairs", pairs, file_bytes=file_bytes)
    assert full.codes == [1]
    last = full.err.splitlines()[-1]
    assert last.startswith("train: expected to write ")
    assert "got: File too large; the last good checkpoint is" in last
    assert f"{run}/checkpoints/checkpoint-4;" in last
    assert checkpoints(run) == [4]
    assert f"continuing at step 4 of {STEPS}" in completed(train(run, "--pairs", pairs)).out
    assert_same(run, undisturbed)


# ---------------------------------------------------------------- other pairs


class Other(Softsign):
    fingerprint = "other"


OTHERS = {
    "teacher": (Other(), "data.teacher was 'softsign', is 'other'"),
    "shape": (Softsign(channels=3), "data.image_shape was [1, 4, 4], is [3, 4, 4]"),
    "classes": (Softsign(num_classes=7), "data.num_classes was 10, is 7"),
    "no classes": (Softsign(num_classes=None), "data.num_classes was 10, is None"),
}


@pytest.mark.parametrize(("teacher", "words"), OTHERS.values(), ids=OTHERS)
def test_pairs_of_something_else_are_refused_in_one_line(
    teacher, words, train, undisturbed, tmp_path
):
    before, pairs = contents(undisturbed), write_pairs(tmp_path / "pairs", 5, "png", teacher)
    refused = train(undisturbed, "--pairs", pairs)
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert words in refused.err
    assert contents(undisturbed) == before


# ---------------------------------------------------------------- trackers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandb", "expected the package of tracker wandb to be installed, got none"),
        ("abacus", "expected report_to among"),
    ],
)
def test_trackers_that_are_not_there_are_refused_in_one_line(name, words, train, pairs, tmp_path):
    refused = train(tmp_path / "run", "--pairs", pairs, "--report_to", name)
    assert (refused.codes, refused.err.count("\n")) == ([2], 1)
    assert words in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_shows_what_metrics_jsonl_holds_and_pictures(train, pairs, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    completed(train(run, "--pairs", pairs, "--report_to", "tensorboard"))
    lines = metrics(run)
    shown: dict[str, dict[int, float]] = {}
    pictures: set[int] = set()
    for file in run.rglob("events.out.tfevents.*"):
        events = accumulator.EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            shown.setdefault(tag, {}).update({e.step: e.value for e in events.Scalars(tag)})
        pictures |= {e.step for tag in events.Tags()["images"] for e in events.Images(tag)}
    for name in ("loss", "total", "grad_norm", "validation_l1"):
        logged = {line["step"]: line[name] for line in lines if name in line}
        assert shown[name] == pytest.approx(logged, rel=1e-6)
    assert len(shown["images_per_second"]) == STEPS
    assert pictures == {4, 8, 12}
