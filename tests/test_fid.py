"""pipeline.fid: torch-fidelity's figures, whoever does the work and however often it is stopped."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from data import SHIPPED
from data.real import real_images
from data.real.sources import ImageSource, open_source
from get import GETPipeline
from get.images import from_uint8, to_pil, to_uint8
from get.metrics.features import load_classifier
from pipeline.jobs.generated import Generated, from_here, generated

from .problems import shake, tiny_get, tiny_vit
from .processes import At, completed

NETWORK = SHIPPED / "digits-features"
CPU = torch.device("cpu")
DIGITS: dict[str, Any] = {"channels": 1, "num_classes": 10}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A GET with random weights."""
    folder = tmp_path_factory.mktemp("student") / "get"
    GETPipeline(model=tiny_get(**DIGITS)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder of 300 digits."""
    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(to_uint8(real_images("digits", "training").images[:300])):
        to_pil(image).save(folder / f"{i:03d}.png")
    return folder


def flags(out: Path, *models: Path | str, images: int = 250, seeds: tuple[int, ...] = (0,)) -> list:
    cache = "--output_dir", out, "--cache", out.parent / "cache"
    given = "--models", *models, "--feature_networks", NETWORK
    return ["digits", *given, *cache, "--num_images", images, "--seeds", *seeds]


def results(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "fid.json").read_text())["results"]


class Ours(FeatureExtractorBase):
    """Our network as torch-fidelity wants it."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.network = load_classifier(NETWORK)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = dict(zip(("vector", "logits"), self.network.both(from_uint8(input)), strict=True))
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "vector", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "vector"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class Images(Dataset):
    """8-bit images of a source."""

    def __init__(self, source: Any) -> None:
        self.images = to_uint8(source.read(0, source.count)[0])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_every_figure_is_torch_fidelitys_own(here, student, digits, tmp_path):
    metrics = "--references", digits, "--metrics", "kid", "prc", "--batch_size", 100
    completed(here("fid", *flags(tmp_path / "out", student), *metrics))
    (result,) = results(tmp_path / "out")
    found = result["by_seed"]["0"]["networks"]["digits-features"]
    ours = found["references"][str(digits)]

    register_feature_extractor("ours", Ours)
    (made,) = generated(str(student), CPU, 250, (0,), (), (0.0,))
    theirs = calculate_metrics(
        input1=Images(made),
        input2=Images(open_source(str(digits), tmp_path)),
        **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
        **{"feature_extractor": "ours", "kid_subset_size": 250, "save_cpu_ram": True},
        **{"cuda": False, "verbose": False, "cache": False},
    )
    for name, value in {
        "frechet_inception_distance": ours["fid"],
        "kernel_inception_distance_mean": ours["kid"],
        "inception_score_mean": found["inception_score"],
        "inception_score_std": found["inception_score_std"],
        "precision": ours["precision"],
        "recall": ours["recall"],
    }.items():
        assert value == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


def test_two_processes_give_the_figures_of_one(script, student, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        out = tmp_path / name / "out"
        completed(script("pipeline.fid", *flags(out, student, images=1100), processes=processes))
        assert not list((out / "features").glob("*"))
    one, two = (results(tmp_path / name / "out") for name in ("one", "two"))
    assert one == two


def test_a_killed_evaluation_goes_on_where_it_was(script, here, student, tmp_path):
    out = tmp_path / "killed" / "out"
    command = flags(out, student, images=2100)
    at = At("os.rename", "*/features/*.safetensors", 2)
    assert script("pipeline.fid", *command, at=at).codes == [-9]
    (part,) = (out / "features").rglob("0*.safetensors")
    made = part.stat().st_mtime_ns, part.read_bytes()
    kept = [p.stat().st_mtime_ns for p in sorted((tmp_path / "killed" / "cache").rglob("0*"))]
    assert script("pipeline.fid", *command, at=At("os.rename", "*/figures/*")).codes == [-9]
    assert (part.stat().st_mtime_ns, part.read_bytes()) == made
    completed(here("fid", *command))
    assert len(kept) == 3
    assert kept == [p.stat().st_mtime_ns for p in sorted((tmp_path / "killed/cache").rglob("0*"))]
    completed(here("fid", *flags(tmp_path / "whole" / "out", student, images=2100)))
    assert results(out) == results(tmp_path / "whole" / "out")


def test_a_sweep_measures_only_what_is_missing(here, student, tmp_path):
    GETPipeline(model=tiny_vit(**DIGITS)).save_pretrained(tmp_path / "vit")
    out, dial = tmp_path / "out", ("--iterations", 1, 3, "--tol", 0, 0.5)
    few = flags(out, student, tmp_path / "vit", images=40)
    completed(here("fid", *few, *dial))
    before = {p: p.stat().st_mtime_ns for p in (out / "figures").iterdir()}
    assert len(before) == 5  # 2 x 2 and 1
    copy = shutil.copytree(tmp_path / "vit", tmp_path / "checkpoint")
    more = flags(out, student, tmp_path / "vit", copy, images=40, seeds=(0, 1, 2))
    printed = completed(here("fid", *more, *dial)).out
    after = {p: p.stat().st_mtime_ns for p in (out / "figures").iterdir()}
    assert len(after) == 15
    assert before.items() <= after.items()
    rows = results(out)
    dials = [(r["iterations"], r["tol"]) for r in rows]
    assert dials == [(1, 0), (1, 0.5), (3, 0), (3, 0.5), (None, 0)]
    for row in rows:
        each = [
            run["networks"]["digits-features"]["references"]["digits-train"]["fid"]
            for run in row["by_seed"].values()
        ]
        summary = row["summary"]["networks"]["digits-features"]
        assert summary["digits-train"]["fid"] == pytest.approx(sum(each) / 3)
        assert summary["digits-train"]["fid_min"] == min(each)
        assert row["summary"]["seeds"] == len(each) == 3
        assert 0 <= summary["class_accuracy"] <= 1
    assert "40 images: FID is biased upwards" in printed
    assert printed.count(f"{copy} makes the same images as {tmp_path / 'vit'}, which") == 1
    assert "40 images" in (out / "fid.md").read_text()


def test_the_held_out_images_have_fdr_one(here, tmp_path):
    judge = SHIPPED / "digits-features-b"
    completed(
        here(
            "fid",
            *flags(tmp_path / "out", "digits-val", images=400),
            "--feature_networks",
            NETWORK,
            judge,
        )
    )
    (result,) = results(tmp_path / "out")
    assert result["summary"]["fdr"]["digits-train"] == pytest.approx(1)
    assert result["images"] == 397


def test_statistics_of_a_file_give_the_fid_of_their_images(here, student, tmp_path):
    images = real_images("digits", "training").images
    vectors = load_classifier(NETWORK).features(images).detach().double().numpy()
    file = tmp_path / "digits.npz"
    np.savez(file, mu=vectors.mean(0), sigma=np.cov(vectors, rowvar=False))
    both = "--references", file, "digits-train"
    completed(here("fid", *flags(tmp_path / "out", student), *both))
    of = results(tmp_path / "out")[0]["summary"]["networks"]["digits-features"]
    assert of[str(file)]["fid"] == pytest.approx(of["digits-train"]["fid"], rel=1e-9)

    np.savez(file, mu=np.zeros(5), sigma=np.eye(5))
    refused = here("fid", *flags(tmp_path / "out", student), "--references", file)
    assert refused.code == 2
    assert "expected statistics of 64 features for digits-features" in refused.err


def test_features_are_kept_under_the_content_of_the_images_not_their_name(
    here, student, digits, tmp_path
):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(digits.iterdir())[:50]:
        (folder / path.name).write_bytes(path.read_bytes())
    command = *flags(tmp_path / "out", student, images=50), "--references", folder
    fids = []
    for _ in range(2):
        completed(here("fid", *command))
        of = results(tmp_path / "out")[0]["summary"]["networks"]["digits-features"]
        fids.append(of[str(folder)]["fid"])
        (folder / "000.png").write_bytes((digits / "299.png").read_bytes())
    assert fids[0] != fids[1]


def test_a_second_job_at_the_same_task_is_refused(here, student, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with (out / "task-0.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = here("fid", *flags(out, student))
    assert refused.code == 2
    assert "got another job at work in it" in refused.err


def test_the_teachers_images_are_read_across_shards(own_pairs, tmp_path):
    source = open_source(str(own_pairs), tmp_path)
    assert isinstance(source, ImageSource)
    assert (source.shape, source.count) == ((3, 16, 16), 80)
    images, labels = source.read(10, 40)  # over the borders of shards of 16
    whole, _ = source.read(0, 80)
    assert torch.equal(images, whole[10:40])
    assert labels is not None
    assert len(labels) == 30


def test_latents_are_decoded_before_features(tmp_path):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = shake(AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
                              down_block_types=("DownEncoderBlock2D",) * 2,
                              up_block_types=("UpDecoderBlock2D",) * 2))  # fmt: skip
    GETPipeline(model=tiny_get(channels=4), vae=vae).save_pretrained(tmp_path)
    (made,) = generated(str(tmp_path), CPU, 8, (0,), (), (0.0,))
    assert isinstance(made, Generated)
    assert made.shape == (3, 16, 16)
    assert made.read(0, 2)[0].shape == (2, 3, 16, 16)


def test_a_student_is_named_from_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "digits") == "runs/digits"
    assert from_here(Path("runs/digits")) == "runs/digits"
    assert from_here(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")
