"""Scripts as programs: launched in every way, asked for help, given bad input."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from get import GETPipeline
from pipeline.recipes import RECIPES, measures, recipe
from pipeline.recipes.__main__ import main as show_recipes
from pipeline.recipes.settings_classify import certifications, image_classifiers

from .problems import tiny_get
from .processes import ROOT, Result, completed, environment
from .runs import WEIGHTS

TABLES = {
    "train_teacher": recipe.teachers,
    "train_classifier": recipe.classifiers,
    "train_equilibrium_classifier": image_classifiers,
    "make_pairs": recipe.pairs,
    "plan": recipe.plans,
    "train": recipe.students,
    "sample": recipe.samples,
    "evaluate": measures.evaluations,
    "fid": measures.fids,
    "diagnose": measures.diagnoses,
    "demo": measures.demos,
    "certify": certifications,
    "report": measures.reports,
}


def start(*arguments: object, **variables: str) -> Result:
    """Run Python in the repository's root, without a GPU."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Result([done.returncode], done.stdout, done.stderr)


# ---------------------------------------------------------------- started from outside


def test_accelerate_launches_train_by_its_path(smoke, smoke_pairs, tmp_path):
    launch = "-m", "accelerate.commands.launch", "pipeline/train.py", "smoke"
    completed(start(*launch, "--pairs", smoke_pairs, "--output_dir", tmp_path / "run"))
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (smoke / WEIGHTS).read_bytes()


def test_bad_input_ends_a_process_with_2_and_nothing_else_on_stderr(tmp_path):
    train = "-m", "pipeline.train", "smoke", "--pairs", tmp_path, "--output_dir", tmp_path
    result = start(*train)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


@pytest.mark.slow  # test_resume.py has the same in forked processes
@pytest.mark.parametrize(
    ("error", "said", "lines", "code"),
    [
        ("KeyboardInterrupt", "stopped by SIGINT; run the same command", 1, -signal.SIGINT),
        ("FileNotFoundError(2, 'No usable temporary directory')", "expected room for", 1, 1),
        ("ValueError", "Traceback", 3, 1),
    ],
)
def test_what_stops_a_script_while_it_still_imports_is_one_line(error, said, lines, code):
    command = [sys.executable, "-c", f"import pipeline; raise {error}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.startswith(said)
    assert (done.stderr.count("\n"), done.returncode) == (lines, code)


def test_torchrun_trains_on_two_processes_what_one_does(smoke, smoke_pairs, tmp_path):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2
    train = "-m", "pipeline.train", "smoke", "--pairs", smoke_pairs, "--output_dir", tmp_path
    completed(start(*torchrun, *train, ACCELERATE_USE_CPU="1"))
    one, two = load_file(smoke / WEIGHTS), load_file(tmp_path / WEIGHTS)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)  # sums of gradients are ordered anew


def test_processes_that_do_not_know_each_other_are_refused(smoke_pairs, tmp_path, here):
    """As torchrun starts them without ACCELERATE_USE_CPU."""
    arguments = "smoke", "--pairs", smoke_pairs, "--output_dir", tmp_path / "run"
    result = here("train", *arguments, WORLD_SIZE="2")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "ACCELERATE_USE_CPU=1 torchrun" in result.err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- help and bad input


@pytest.mark.parametrize("name", TABLES)
def test_every_script_explains_itself_and_its_mistakes(name, here):
    names = TABLES[name](RECIPES)
    shown = completed(here(name, "--help")).out
    assert all(recipe in shown for recipe in names)
    recipe = next(iter(names))
    for arguments in ([], ["digit"]):
        code, out, err = here(name, *arguments)[:3]
        assert (code, out, err.count("\n")) == ([2], "", 1)
        assert err.startswith(f"{name}: expected a name such as ")
    wrong = {"report": "--evaluatoin", "demo": "--modle"}.get(name, "--output_dri")
    misspelt = here(name, recipe, wrong, "x")
    assert misspelt.code == 2
    assert "Perhaps you meant" in misspelt.err
    if name != "make_pairs":  # which writes to object stores
        flag = {"report": "--evaluation", "demo": "--model"}.get(name, "--output_dir")
        address = here(name, recipe, flag, "s3://key:SECRET@bucket/x")
        assert (address.code, address.err.count("\n")) == (2, 1)
        assert "got the address s3://...@bucket/x; use a local one" in address.err


def test_help_has_flags_as_documents_write_them_and_explains_shapes(here):
    shown = completed(here("train", "smoke", "--help")).out
    assert "--max_train_steps INT" in shown
    assert "--max-train-steps" not in shown
    assert "Weight-tied blocks, run in every iteration." in shown
    assert "usage: verify_pairs " in completed(here("verify_pairs", "--help")).out


def unexplained(settings: Any) -> Iterator[str]:
    """Yield the fields of settings, and of settings in them, that no docstring describes."""
    text = "\n".join(kind.__doc__ or "" for kind in type(settings).__mro__)
    for name in (field.name for field in fields(settings)):
        if re.search(rf"^ +{name}: ", text, re.MULTILINE) is None:
            yield f"{type(settings).__name__}.{name}"
        if is_dataclass(value := getattr(settings, name)):
            yield from unexplained(value)


def test_every_flag_of_every_recipe_is_explained():
    every = (one for table in TABLES.values() for one in table(RECIPES).values())
    assert {name for settings in every for name in unexplained(settings)} == set()


def test_the_list_of_recipes_explains_itself(capsys):
    show_recipes(["--help"])
    assert "NAME is one of: digits, photos, equilibria, smoke" in capsys.readouterr().out


@pytest.fixture
def refusals(tmp_path, smoke_pairs, smoke, pictures, own_pairs, own_teacher):
    """Return scripts, their arguments, and words of the one line they answer with."""
    torn, new, none, other = (tmp_path / x for x in ("torn", "new", "none", "other"))
    (file := tmp_path / "file").touch()
    shutil.copytree(smoke, torn)
    GETPipeline(tiny_get(num_classes=10)).save_pretrained(other)
    (torn / "finished.json").unlink()
    for path in (torn / WEIGHTS, torn / "checkpoints/checkpoint-20/state/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    train = "train", "smoke", "--pairs", smoke_pairs, "--output_dir"
    sample = "sample", "smoke", "--output_dir", new, "--model"
    evaluate = "evaluate", "smoke", "--pairs", smoke_pairs, "--runs", smoke, "--output_dir", new
    elsewhere = "--pairs", own_pairs, "--teacher", own_teacher, "--num_images", 16
    return [
        (*train[:2], "--pairs", none, "no readable manifest.json"),
        (*train, new, "--holdout_shards", 5, "expected training shards"),
        (*train, new, "--streams", 0, "expected streams above 0, got 0"),
        (*train, new, "--seed", -1, "expected seed from 0 to 2^64 - 1, got -1"),
        (*train, new, "--unrolled_iterations", 0, "at least 1 for gradient unrolled, got 0"),
        (*train, new, "--train_batch_size", 3, "16 = train_batch_size x 1 processes"),
        (*train, smoke, "--learning_rate", 1, "got: learning_rate was"),
        (*train[:2], "--pairs", own_pairs, "--output_dir", smoke, "data.teacher was"),
        (*train, new, "--pairs", own_pairs, "expected --pairs once, got it again"),
        (*train, "", "got an empty one; is a variable of the shell unset?"),
        (*train, new, "--pairs=", "got an empty one; is a variable of the shell unset?"),
        (*train, tmp_path, "expected an empty folder or a run"),
        (*train, torn, "expected a readable checkpoint in"),
        (*sample, none, "expected a model (model_index.json)"),
        (*sample, own_teacher, "expected a GETPipeline"),
        (*sample, torn, "expected a readable model in"),
        (*sample, smoke, "--class_labels", 3, 10, "expected class_labels below 10"),
        ("make_pairs", "smoke", "--output_dir", smoke_pairs, "--seed", 1, "seed was 0, is 1"),
        ("make_pairs", "smoke", "--teacher", none, "got nothing there"),
        ("make_pairs", "smoke", "--teacher", smoke, "got model GET; such teachers"),
        ("train_teacher", "smoke", "--check", "--output_dir", none, "expected a teacher"),
        ("train_teacher", "smoke", "--train_data_dir", none, "there is no such folder"),
        (*evaluate, "--num_images", 65, "expected 65 held-out pairs"),
        (*evaluate, "--feature_networks", none, "expected a feature network"),
        (*evaluate, "--teacher", own_teacher, "expected the teacher that made"),
        (*evaluate, *elsewhere, "expected images of (3, 16, 16)"),
        (*evaluate, "--real_images", pictures, "expected images of (1, 8, 8)"),
        (*evaluate, "--runs", other, "expected a model of (1, 8, 8)"),
        (*evaluate, "--runs", smoke, tmp_path / "again" / smoke.name, "student twice"),
        ("report", "smoke", "--evaluation", tmp_path / "empty", "got none"),
        (*train, file, "File exists"),
        ("make_pairs", "smoke", "--output_dir", file, "File exists"),
        ("curate_pairs", "preview", smoke_pairs, "--output_dir", file, "File exists"),
        ("verify_pairs", smoke_pairs, "--deep", "expected --teacher with --deep"),
        ("verify_pairs", smoke_pairs, "--tolerance", "nan", "tolerance of 0 to 1, got nan"),
    ]


def test_bad_input_is_answered_with_one_line(refusals, tmp_path, here, subtests):
    for *arguments, words in refusals:
        with subtests.test(words):
            result = here(*arguments)
            assert (result.code, result.err.count("\n")) == (2, 1), result.err
            assert result.err.startswith(f"{arguments[0]}: expected ")
            assert words in result.err
            assert not (tmp_path / "none").exists()
