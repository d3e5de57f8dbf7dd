"""Every stage of a distillation as a user runs it: results, second runs, signals."""

import json
import signal
from pathlib import Path

import torch
from PIL import Image

from data import SHIPPED
from data.manifest import read_manifest, record_path, tar_path
from get import GETPipeline
from get.images import from_pil
from pipeline.jobs.card import check_card

from .problems import tiny_get
from .processes import At, completed
from .runs import WEIGHTS, metrics, writing


def test_make_pairs_writes_complete_shards_once(smoke_pairs, here):
    names = {
        "manifest.json",
        *(f"pairs-{i:06d}.{end}" for i in range(5) for end in ("tar", "json")),
    }
    assert {p.name for p in smoke_pairs.iterdir()} == names
    assert read_manifest(smoke_pairs).image_shape == (1, 8, 8)
    again = completed(here("make_pairs", "smoke", "--output_dir", smoke_pairs))
    assert "nothing to do" in again.out


def test_make_pairs_stopped_by_a_signal_goes_on_to_the_same_bytes(smoke_pairs, tmp_path, script):
    command = "pipeline.make_pairs", "smoke", "--output_dir", tmp_path
    first = At("os.rename", str(record_path(tmp_path, 0)))
    stopped = script(*command, at=first, number=signal.SIGTERM)
    assert stopped.code == 128 + signal.SIGTERM
    assert f"of 5 shards are written to {tmp_path}, " in stopped.err.splitlines()[-1]
    assert not tar_path(tmp_path, 4).exists()
    completed(script(*command))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in smoke_pairs.iterdir()
    }


def test_train_leaves_a_pipeline_its_settings_and_its_metrics(smoke, smoke_pairs, here):
    index = json.loads((smoke / "model_index.json").read_text())
    assert (index["_class_name"], index["model"]) == ("GETPipeline", ["get.models.get", "GET"])
    pipeline = GETPipeline.from_pretrained(smoke, use_safetensors=True)
    (images,) = pipeline(batch_size=2, output_type="pt", return_dict=False)
    assert images.shape == (2, 1, 8, 8)
    record = json.loads((smoke / "run.json").read_text())
    assert {"config", "versions", "commit", "hardware"} <= record.keys()
    assert record["config"]["data"]["teacher"] == read_manifest(smoke_pairs).teacher
    lines = metrics(smoke)
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 21))
    assert [x["step"] for x in lines if "validation_l1" in x] == [10, 20]
    speed = [json.loads(line) for line in (smoke / "speed.jsonl").read_text().splitlines()]
    assert [x["step"] for x in speed] == list(range(1, 21))
    assert all(x["images_per_second"] > 0 for x in speed)
    pictures = {"step-000010.png", "step-000020.png"}
    assert {p.name for p in (smoke / "samples").iterdir()} == pictures
    again = completed(here("train", "smoke", "--pairs", smoke_pairs, "--output_dir", smoke))
    assert "finished; nothing to do" in again.out


def test_train_measures_a_small_fid_if_real_images_are_given(
    smoke_pairs, own_pairs, tmp_path, here
):
    few = "--max_train_steps", 4, "--validation_steps", 2, "--checkpointing_steps", 4
    real = "--feature_network", SHIPPED / "digits-features", "--real_images", "digits"
    run = "train", "smoke", *few, *real, "--output_dir", tmp_path / "run", "--pairs"
    assert here(*run, smoke_pairs).code == 0
    measured = [x["validation_fid"] for x in metrics(tmp_path / "run") if "validation_fid" in x]
    assert len(measured) == 2
    assert all(fid > 0 for fid in measured)
    refused = here(*run, own_pairs)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "expected images of (3, 16, 16) like those of the pairs" in refused.err


def test_train_killed_and_interrupted_ends_with_the_same_bits(smoke, smoke_pairs, tmp_path, script):
    run = tmp_path / "run"
    command = "pipeline.train", "smoke", "--pairs", smoke_pairs, "--output_dir", run
    killed = script(*command, at=writing(20))
    assert killed.code == -signal.SIGKILL
    assert not (run / "finished.json").exists()
    stopped = script(*command, at=At("get.step", "14"), number=signal.SIGINT)
    assert stopped.code == 128 + signal.SIGINT
    assert not (run / "finished.json").exists()
    assert "of 20 is saved in" in stopped.err.splitlines()[-1]
    assert "continuing at step 10 of 20" in stopped.out
    completed(script(*command))
    assert (run / WEIGHTS).read_bytes() == (smoke / WEIGHTS).read_bytes()
    assert (run / "metrics.jsonl").read_text() == (smoke / "metrics.jsonl").read_text()
    speed = (run / "speed.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in speed] == list(range(1, 21))


def test_sample_makes_the_same_images_in_any_batch_and_process(tmp_path, here, script):
    GETPipeline(tiny_get(channels=1, num_classes=10, z0="normal")).save_pretrained(tmp_path / "m")

    def images(name: str) -> torch.Tensor:
        files = sorted((tmp_path / name).glob("0*.png"))
        assert len(files) == 20
        return torch.stack([from_pil(Image.open(p)) for p in files]).int()

    flags = "--model", tmp_path / "m", "--num_images", 20, "--output_dir"
    alone = "pipeline.sample", *flags, tmp_path / "a", "--batch_size", 7  # without a recipe
    completed(script(*alone))
    common = "sample", "smoke", *flags
    for name, size in (("b", 1), ("c", 64)):
        completed(here(*common, tmp_path / name, "--batch_size", size))
    first = completed(here(*common, tmp_path / "d", RANK="1", WORLD_SIZE="2"))
    assert "grid" not in first.out
    completed(here(*common, tmp_path / "d", RANK="0"))
    assert all((images("a") - images(name)).abs().max() <= 1 for name in "bcd")
    assert all((images("a")[0] - other).abs().max() > 9 for other in images("a")[1:])
    assert all((tmp_path / name / "grid.png").exists() for name in "abcd")
    assert "nothing to do" in completed(here(*common, tmp_path / "a", WORLD_SIZE="1")).out


def test_evaluate_and_report_compare_all_models_with_the_teacher(
    smoke, smoke_pairs, tmp_path, here
):
    vit, folder, readme = tmp_path / "vit", tmp_path / "evaluation", tmp_path / "README.md"
    few = "--max_train_steps", 2, "--pairs", smoke_pairs, "--output_dir", vit
    completed(here("train", "smoke-vit", *few))
    arguments = "smoke", "--pairs", smoke_pairs, "--runs", smoke, vit, "--output_dir", folder
    completed(here("evaluate", *arguments))
    measured = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("teacher", "student", "vit")
    }
    assert [m["kind"] for m in measured.values()] == ["teacher", "GET", "ViT"]
    assert [m["evaluations"] for m in measured.values()] == [7, 1, 1]
    by_iterations = measured["student"]["by_iterations"]
    assert list(by_iterations) == ["1", "2", "3"]  # 2 as trained
    for figures in (measured["teacher"], measured["vit"], *by_iterations.values()):
        assert figures["training"].keys() == figures["held_out"].keys() >= {"fid", "kid", "recall"}
        assert {"macs", "images_per_second", "class_accuracy", "fdr"} <= figures.keys()
        assert [*figures["networks"]] == [f"digits-features{end}" for end in ("", "-b", "-c")]
    assert measured["vit"]["trained_on"] is None
    assert all({"inputs", "versions", "commit", "hardware"} <= m.keys() for m in measured.values())
    assert "nothing to do" in completed(here("evaluate", *arguments)).out

    readme.write_text("before <!-- table:smoke -->old<!-- end --> after")
    report = "smoke", "--evaluation", folder, "--documents", readme
    table = completed(here("report", *report)).out
    assert all(name in table for name in ("teacher", "student, 2 iterations", "vit", "FID", "FDr"))
    text = (folder / "report.md").read_text(), readme.read_text()
    assert text[1].split("<!--")[0::2] == ["before ", " end --> after"]
    assert "old" not in text[1]
    assert all("| teacher |" in part for part in text)
    with Image.open(folder / "comparison.png") as picture:
        assert picture.width > 10 * 48
    completed(here("report", *report))
    assert text == ((folder / "report.md").read_text(), readme.read_text())


def test_a_teacher_trained_on_pictures_makes_pairs(own_teacher, own_pairs, pictures, here):
    manifest = read_manifest(own_pairs)
    assert (manifest.image_shape, manifest.num_classes) == ((3, 16, 16), 2)
    checked = completed(here("train_teacher", "smoke", "--check", "--output_dir", own_teacher))
    assert "it samples" in checked.out
    card = json.loads((own_teacher / "card.json").read_text())
    assert card["steps"] == 3
    assert {"unet/config.json", "model_index.json"} < card["sha256"].keys()
    again = "--train_data_dir", pictures, "--max_train_steps", 3, "--output_dir", own_teacher
    assert "nothing to do" in completed(here("train_teacher", "smoke", *again)).out


def test_train_classifier_reports_its_accuracy(tmp_path: Path, here):
    few = "--max_train_steps", 30, "--lr_warmup_steps", 2, "--ema_decay", 0
    completed(here("train_classifier", "digits", *few, "--output_dir", tmp_path))
    assert 0.3 < json.loads((tmp_path / "card.json").read_text())["held_out_accuracy"] <= 1


def test_the_shipped_weights_are_complete(here):
    for folder in SHIPPED.iterdir():
        check_card(folder)
    teacher = SHIPPED / "digits-teacher"
    completed(here("train_teacher", "digits", "--check", "--output_dir", teacher))
