"""Every script as a user runs it: results, second runs, signals, bad input.

What has to be a process of its own is one; the rest goes through the same `cli.run` in this one,
because importing torch and diffusers takes longer than what is tested.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.manifest import read_manifest, record_path, tar_path
from data import SHIPPED
from get import GETPipeline
from get.images import from_pil, to_pil, to_uint8
from get.noise import draw
from pipeline import cli, recipes
from pipeline.jobs.card import check_card

from .problems import tiny_get

ROOT = Path(__file__).parents[1]
TABLES = {
    "train_teacher": recipes.TEACHERS,
    "train_classifier": recipes.CLASSIFIERS,
    "make_pairs": recipes.PAIRS,
    "train": recipes.STUDENTS,
    "sample": recipes.SAMPLES,
    "evaluate": recipes.EVALUATIONS,
    "diagnose": recipes.DIAGNOSES,
    "report": recipes.REPORTS,
}
WEIGHTS = "model/diffusion_pytorch_model.safetensors"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


class Result(NamedTuple):
    code: int
    out: str
    err: str


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start Python in the repository's root, without a GPU."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**clean, **quiet, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def module(name: str, *arguments: object) -> tuple[object, ...]:
    return ("-m", f"pipeline.{name}", *arguments)


def whole(result: Result) -> Result:
    assert result.code == 0, result.err[-2000:]
    return result


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.002)


@pytest.fixture
def here(monkeypatch, capsys):
    """Return a function that runs a script in this process."""

    def run(name: str, *arguments: object, **environment: str) -> Result:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        capsys.readouterr()
        code = 0
        try:
            cli.run(import_module(f"pipeline.{name}").main, TABLES[name])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """What `make_pairs smoke` writes."""
    folder = tmp_path_factory.mktemp("pairs")
    whole(end(start(*module("make_pairs", "smoke", "--output_dir", folder))))
    return folder


@pytest.fixture(scope="module")
def student(pairs) -> Path:
    """What `train smoke` leaves, launched by path."""
    folder = pairs.with_name("student")
    launch = "-m", "accelerate.commands.launch", "pipeline/train.py", "smoke"
    whole(end(start(*launch, "--pairs", pairs, "--output_dir", folder)))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of 40 colour pictures in two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    noise, _ = draw(0, range(40), (3, 16, 16))
    for i, picture in enumerate(to_uint8(noise / 3)):
        path = folder / ("dark" if i % 2 else "bright") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        to_pil(picture).save(path)
    return folder


@pytest.fixture(scope="module")
def other_teacher(pictures) -> Path:
    """A teacher trained for three steps on the pictures."""
    folder = pictures.with_name("other-teacher")
    few = "--train_data_dir", pictures, "--max_train_steps", 3, "--output_dir", folder
    whole(end(start(*module("train_teacher", "smoke", *few))))
    return folder


@pytest.fixture(scope="module")
def other_pairs(other_teacher) -> Path:
    """Pairs of that teacher."""
    folder = other_teacher.with_name("other-pairs")
    few = "--num_pairs", 80, "--pairs_per_shard", 16, "--num_inference_steps", 2
    given = "smoke", *few, "--teacher", other_teacher, "--output_dir", folder
    whole(end(start(*module("make_pairs", *given))))
    return folder


# ---------------------------------------------------------------- every stage


def test_make_pairs_writes_whole_shards_once(pairs, here):
    names = {
        "manifest.json",
        *(f"pairs-{i:06d}.{end}" for i in range(5) for end in ("tar", "json")),
    }
    assert {p.name for p in pairs.iterdir()} == names
    assert read_manifest(pairs).image_shape == (1, 8, 8)
    again = whole(here("make_pairs", "smoke", "--output_dir", pairs))
    assert "nothing to do" in again.out


def test_make_pairs_stopped_by_a_signal_goes_on_to_the_same_bytes(pairs, tmp_path):
    command = module("make_pairs", "smoke", "--output_dir", tmp_path)
    process = start(*command)
    wait_for(record_path(tmp_path, 0).exists, process)
    process.send_signal(signal.SIGTERM)
    stopped = end(process)
    assert stopped.code == 128 + signal.SIGTERM
    assert f"of 5 shards are written to {tmp_path}, " in stopped.err.splitlines()[-1]
    assert not tar_path(tmp_path, 4).exists()
    whole(end(start(*command)))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in pairs.iterdir()
    }


def test_train_leaves_a_pipeline_its_settings_and_its_metrics(student, pairs, here):
    index = json.loads((student / "model_index.json").read_text())
    assert (index["_class_name"], index["model"]) == ("GETPipeline", ["get.models.get", "GET"])
    pipeline = GETPipeline.from_pretrained(student, use_safetensors=True)
    (images,) = pipeline(batch_size=2, output_type="pt", return_dict=False)
    assert images.shape == (2, 1, 8, 8)
    record = json.loads((student / "run.json").read_text())
    assert {"config", "versions", "commit", "hardware"} <= record.keys()
    assert record["config"]["data"]["teacher"] == read_manifest(pairs).teacher
    lines = [json.loads(x) for x in (student / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 21))
    assert [x["step"] for x in lines if "validation_l1" in x] == [10, 20]
    assert {p.name for p in (student / "samples").iterdir()} == {
        "step-000010.png", "step-000020.png"
    }  # fmt: skip
    again = whole(here("train", "smoke", "--pairs", pairs, "--output_dir", student))
    assert "finished; nothing to do" in again.out


def test_train_measures_a_small_fid_where_it_is_told_what_is_real(
    pairs, other_pairs, tmp_path, here
):
    few = "--max_train_steps", 4, "--validation_steps", 2, "--checkpointing_steps", 4
    real = "--feature_network", SHIPPED / "digits-features", "--real_images", "digits"
    run = "train", "smoke", *few, *real, "--output_dir", tmp_path / "run", "--pairs"
    assert here(*run, pairs).code == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [x["validation_fid"] for x in map(json.loads, lines) if "validation_fid" in x]
    assert len(measured) == 2
    assert all(fid > 0 for fid in measured)
    refused = here(*run, other_pairs)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "expected images of (3, 16, 16) like those of the pairs" in refused.err


def test_train_killed_and_interrupted_ends_with_the_same_bits(student, pairs, tmp_path):
    run = tmp_path / "run"
    command = module("train", "smoke", "--pairs", pairs, "--output_dir", run)

    def reached(step: int) -> Callable[[], bool]:
        path = run / "metrics.jsonl"
        return lambda: path.exists() and f'"step": {step},' in path.read_text()

    for step, number in ((12, signal.SIGKILL), (14, signal.SIGINT)):
        process = start(*command)
        wait_for(reached(step), process)
        process.send_signal(number)
        stopped = end(process)
        assert not (run / "finished.json").exists()
    assert stopped.code == 128 + signal.SIGINT
    assert "of 20 is saved in" in stopped.err.splitlines()[-1]
    assert "continuing at step 10 of 20" in stopped.out
    whole(end(start(*command)))
    assert (run / WEIGHTS).read_bytes() == (student / WEIGHTS).read_bytes()
    assert (run / "metrics.jsonl").read_text() == (student / "metrics.jsonl").read_text()


def test_two_processes_train_what_one_does(student, pairs, tmp_path):
    command = *TORCHRUN, *module("train", "smoke", "--pairs", pairs, "--output_dir", tmp_path)
    whole(end(start(*command, ACCELERATE_USE_CPU="1")))
    one, two = load_file(student / WEIGHTS), load_file(tmp_path / WEIGHTS)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)  # sums of gradients are ordered anew


def test_sample_makes_the_same_images_in_any_company(tmp_path, here):
    GETPipeline(tiny_get(channels=1, num_classes=10, z0="normal")).save_pretrained(tmp_path / "m")

    def images(name: str) -> torch.Tensor:
        files = sorted((tmp_path / name).glob("0*.png"))
        assert len(files) == 20
        return torch.stack([from_pil(Image.open(p)) for p in files]).int()

    flags = "--model", tmp_path / "m", "--num_images", 20, "--output_dir"
    whole(end(start(*module("sample", *flags, tmp_path / "a", "--batch_size", 7))))  # no recipe
    common = "smoke", *flags
    for name, size in (("b", 1), ("c", 64)):
        whole(here("sample", *common, tmp_path / name, "--batch_size", size))
    first = whole(here("sample", *common, tmp_path / "d", RANK="1", WORLD_SIZE="2"))
    assert "grid" not in first.out
    whole(here("sample", *common, tmp_path / "d", RANK="0"))
    assert all((images("a") - images(name)).abs().max() <= 1 for name in "bcd")
    assert all((images("a")[0] - other).abs().max() > 9 for other in images("a")[1:])
    assert all((tmp_path / name / "grid.png").exists() for name in "abcd")
    assert "nothing to do" in whole(here("sample", *common, tmp_path / "a", WORLD_SIZE="1")).out


def test_evaluate_and_report_compare_all_models_with_the_teacher(student, pairs, tmp_path, here):
    vit, folder, readme = tmp_path / "vit", tmp_path / "evaluation", tmp_path / "README.md"
    few = "--max_train_steps", 2, "--pairs", pairs, "--output_dir", vit
    whole(here("train", "smoke-vit", *few))
    arguments = "smoke", "--pairs", pairs, "--runs", student, vit, "--output_dir", folder
    whole(end(start(*module("evaluate", *arguments))))
    found = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("teacher", "student", "vit")
    }
    assert [m["kind"] for m in found.values()] == ["teacher", "GET", "ViT"]
    assert [m["evaluations"] for m in found.values()] == [7, 1, 1]
    assert list(found["student"]["by_iterations"]) == ["1", "3"]
    for figures in (found["teacher"], found["vit"], *found["student"]["by_iterations"].values()):
        assert figures["training"].keys() == figures["held_out"].keys() >= {"fid", "kid", "recall"}
        assert {"macs", "images_per_second", "class_accuracy"} <= figures.keys()
    assert all({"of", "versions", "commit", "hardware"} <= m.keys() for m in found.values())
    assert "nothing to do" in whole(here("evaluate", *arguments)).out

    readme.write_text("before <!-- table:smoke -->old<!-- end --> after")
    report = "smoke", "--evaluation", folder, "--readme", readme
    table = whole(here("report", *report)).out
    assert all(name in table for name in ("teacher", "student, 3 iterations", "vit", "FID"))
    text = (folder / "report.md").read_text(), readme.read_text()
    assert text[1].split("<!--")[0::2] == ["before ", " end --> after"]
    assert "old" not in text[1]
    assert all("| teacher |" in part for part in text)
    with Image.open(folder / "comparison.png") as picture:
        assert picture.width > 10 * 48
    whole(here("report", *report))
    assert text == ((folder / "report.md").read_text(), readme.read_text())


def test_a_teacher_trained_on_pictures_makes_pairs(other_teacher, other_pairs, pictures, here):
    manifest = read_manifest(other_pairs)
    assert (manifest.image_shape, manifest.num_classes) == ((3, 16, 16), 2)
    assert (
        "it samples"
        in whole(here("train_teacher", "smoke", "--check", "--output_dir", other_teacher)).out
    )
    card = json.loads((other_teacher / "card.json").read_text())
    assert card["steps"] == 3
    assert {"unet/config.json", "model_index.json"} < card["sha256"].keys()
    again = "--train_data_dir", pictures, "--max_train_steps", 3, "--output_dir", other_teacher
    assert "nothing to do" in whole(here("train_teacher", "smoke", *again)).out


def test_train_classifier_says_how_often_it_is_right(tmp_path, here):
    few = "--max_train_steps", 30, "--lr_warmup_steps", 2, "--ema_decay", 0
    whole(here("train_classifier", "digits", *few, "--output_dir", tmp_path))
    assert 0.3 < json.loads((tmp_path / "card.json").read_text())["held_out_accuracy"] <= 1


def test_the_shipped_teacher_is_whole(here):
    for folder in SHIPPED.iterdir():
        check_card(folder)
    teacher = SHIPPED / "digits-teacher"
    whole(here("train_teacher", "digits", "--check", "--output_dir", teacher))


# ---------------------------------------------------------------- help and bad input


@pytest.mark.parametrize("name", TABLES)
def test_every_script_explains_itself_and_its_mistakes(name, here):
    shown = whole(here(name, "--help")).out
    assert all(recipe in shown for recipe in TABLES[name])
    recipe = next(iter(TABLES[name]))
    for arguments in ([], ["digit"]):
        code, out, err = here(name, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"{name}: expected a recipe ({recipe}")
    misspelt = here(name, recipe, "--output_dri" if name != "report" else "--evaluatoin", "x")
    assert misspelt.code == 2
    assert "Perhaps you meant" in misspelt.err


@pytest.fixture
def refusals(tmp_path, pairs, student, pictures, other_pairs, other_teacher):
    """Return scripts, their arguments, and words of the one line they answer with."""
    torn, new, none, other_student = (
        tmp_path / x for x in ("torn", "new", "none", "other-student")
    )
    shutil.copytree(student, torn)
    GETPipeline(tiny_get(num_classes=10)).save_pretrained(other_student)
    (torn / "finished.json").unlink()
    for path in (torn / WEIGHTS, torn / "checkpoints/checkpoint-20/state/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    train = "train", "smoke", "--pairs", pairs, "--output_dir"
    sample = "sample", "smoke", "--output_dir", new, "--model"
    evaluate = "evaluate", "smoke", "--pairs", pairs, "--runs", student, "--output_dir", new
    elsewhere = "--pairs", other_pairs, "--teacher", other_teacher, "--num_images", 16
    return [
        (*train[:2], "--pairs", none, "no readable manifest.json"),
        (*train, new, "--holdout_shards", 5, "expected training shards"),
        (*train, new, "--streams", 3, "3 streams divide"),
        (*train, new, "--seed", -1, "expected seed from 0 to 2^64 - 1, got -1"),
        (*train, new, "--unrolled_iterations", 0, "at least 1 for gradient unrolled, got 0"),
        (*train, new, "--train_batch_size", 3, "16 = train_batch_size x 1 processes"),
        (*train, student, "--learning_rate", 1, "got: learning_rate was"),
        (*train, student, "--pairs", other_pairs, "data.teacher was"),
        (*train, pairs, "expected an empty folder or a run"),
        (*train, torn, "expected a readable checkpoint in"),
        (*sample, none, "expected a model (model_index.json)"),
        (*sample, other_teacher, "expected a GETPipeline"),
        (*sample, torn, "expected a readable GET or ViT"),
        (*sample, student, "--class_labels", 3, 10, "expected class_labels below 10"),
        ("make_pairs", "smoke", "--output_dir", pairs, "--seed", 1, "seed was 0, is 1"),
        ("make_pairs", "smoke", "--teacher", none, "got nothing there"),
        ("make_pairs", "smoke", "--teacher", student, "got model GET; such teachers"),
        ("train_teacher", "smoke", "--check", "--output_dir", none, "expected a teacher"),
        ("train_teacher", "smoke", "--train_data_dir", none, "there is no such folder"),
        (*evaluate, "--num_images", 65, "expected 65 held-out pairs"),
        (*evaluate, "--feature_network", none, "expected a feature network"),
        (*evaluate, "--teacher", other_teacher, "expected the teacher that made"),
        (*evaluate, *elsewhere, "expected images of (3, 16, 16)"),
        (*evaluate, "--real_images", pictures, "expected images of (1, 8, 8)"),
        (*evaluate, "--runs", other_student, "expected a model of (1, 8, 8)"),
        (*evaluate, "--runs", student, tmp_path / "again" / student.name, "student twice"),
        ("report", "smoke", "--evaluation", pairs.parent / "empty", "got none"),
    ]


def test_bad_input_is_answered_with_one_line(refusals, tmp_path, here, subtests):
    for *arguments, words in refusals:
        with subtests.test(words):
            result = here(*arguments)
            assert (result.code, result.err.count("\n")) == (2, 1), result.err
            assert result.err.startswith(f"{arguments[0]}: expected ")
            assert words in result.err
            assert not (tmp_path / "none").exists()


def test_bad_input_ends_a_process_with_2_and_nothing_else_on_stderr(tmp_path):
    result = end(start(*module("train", "smoke", "--pairs", tmp_path, "--output_dir", tmp_path)))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_processes_that_do_not_know_each_other_are_refused(pairs, tmp_path, here):
    """As torchrun starts them without ACCELERATE_USE_CPU."""
    arguments = "smoke", "--pairs", pairs, "--output_dir", tmp_path / "run"
    result = here("train", *arguments, WORLD_SIZE="2")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "ACCELERATE_USE_CPU=1 torchrun" in result.err
    assert not (tmp_path / "run").exists()
