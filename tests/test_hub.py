"""Teachers from the Hugging Face hub: its cache, and what is not there."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from data.teachers.diffusers_folder import load_vae
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get.errors import InputError

from .diffusers_files import FEW, sample, save_dit


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "a/b/c", "../b"])
def test_a_path_that_does_not_exist_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=f"^expected a teacher in {source}, got nothing there;"):
        open_teacher(source, Sampler(), "cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache of the hub; the tests have no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("as_path", [False, True])
def test_a_repository_that_cannot_be_reached_is_refused_in_one_line(as_path: bool) -> None:
    source = Path("owner/name") if as_path else "owner/name"
    with pytest.raises(InputError, match=r"^expected a teacher in owner/name, got neither") as r:
        open_teacher(source, Sampler(), "cpu")
    assert "\n" not in str(r.value)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
def test_a_downloaded_repository_is_the_same_teacher_as_its_folder(revision, cache, tmp_path):
    folder, commit = save_dit(tmp_path / "dit"), "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs" / revision).parent.mkdir(parents=True)
    (repository / "refs" / revision).write_text(commit)
    source = "owner/name" if revision == "main" else f"owner/name@{revision}"
    teacher = open_teacher(source, FEW, "cpu")
    assert teacher.fingerprint == open_teacher(folder, FEW, "cpu").fingerprint
    assert teacher.vae_source == source
    assert load_vae(source).config["scaling_factor"] == 0.5


@pytest.mark.network
def test_the_ddpm_of_the_hub_makes_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    teacher = open_teacher("google/ddpm-cifar10-32", Sampler(steps=10, name="ddim"), "cpu")
    assert (teacher.image_shape, teacher.num_classes) == ((3, 32, 32), None)
    images = sample(teacher)
    assert images.abs().max() <= 1.01  # clip_sample of its own configuration
    assert 0.3 < images.std() < 0.8
