"""What a teacher does whatever format it was opened from; the teachers that come with the code."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

from data import SHIPPED
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from get.errors import InputError
from get.metrics.classifier import Classifier
from get.noise import draw

from .diffusers_files import FEW, sample, save_unet, tiny_unet
from .edm_files import save_kind

FORMATS: dict[str, Callable[[Path], Path]] = {
    "diffusers": lambda f: save_unet(f, EDMEulerScheduler()),
    "diffusers, 5 classes": lambda f: save_unet(f, EDMEulerScheduler(), tiny_unet(5)),
    "EDM": lambda f: save_kind(f, "vp in EDM"),
    "EDM, 5 classes": lambda f: save_kind(f, "vp in EDM, 5 classes"),
}


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a tiny teacher of random weights."""
    return FORMATS[request.param](tmp_path / "teacher")


def test_a_teacher_makes_the_same_images_of_its_shape_whenever_it_is_opened(folder: Path) -> None:
    first, second = (open_teacher(folder, FEW, "cpu") for _ in range(2))
    images = sample(first)
    assert (images.shape, images.dtype) == ((3, 3, 8, 8), torch.float32)
    assert images.isfinite().all()
    assert torch.equal(sample(first), images)
    assert torch.equal(sample(second), images)
    assert (first.image_shape, first.evaluations, first.sampler) == ((3, 8, 8), 7, FEW)
    assert (first.execution, first.vae_source) == (Execution(), None)


def test_an_image_depends_on_its_noise_and_label_only(folder: Path) -> None:
    teacher = open_teacher(folder, FEW, "cpu")
    noise, labels = draw(0, range(4), teacher.image_shape, teacher.num_classes)
    alone = [
        teacher(noise[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(4)
    ]
    torch.testing.assert_close(teacher(noise, labels), torch.cat(alone), rtol=0, atol=1e-4)
    if labels is not None:
        assert not torch.allclose(teacher(noise, (labels + 1) % 5), torch.cat(alone), atol=1e-3)


def test_the_fingerprint_depends_on_the_steps_and_not_on_the_folder(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there = (open_teacher(f, FEW, "cpu").fingerprint for f in (folder, copy))
    assert here == there != open_teacher(folder, Sampler(steps=5), "cpu").fingerprint
    assert len(here) == 64


@pytest.mark.parametrize("name", FORMATS)
def test_a_conditional_teacher_takes_labels_of_its_classes_and_no_other_takes_any(name, tmp_path):
    teacher = open_teacher(FORMATS[name](tmp_path / "teacher"), FEW, "cpu")
    refused: dict[str, list[int] | None] = {"no labels for this teacher, got some": [0, 1]}
    if "classes" in name:
        refused = {
            "labels for this teacher, got none": None,
            "labels from 0 to 4, got 0 to 5": [0, 5],
            "labels from 0 to 4, got -1 to 4": [-1, 4],
        }
    assert teacher.num_classes == (5 if "classes" in name else None)
    for message, given in refused.items():
        with pytest.raises(InputError, match=f"^expected {message}$"):
            teacher(torch.zeros(2, 3, 8, 8), None if given is None else torch.tensor(given))


FP32, BF16 = Execution(), Execution(mixed_precision="bf16")
PINNED = {  # in the manifests of pairs since the first were made
    "d26623d1d47ccc7c91911d3696f993f965a557bc9439adc5ade569ec6b061b90": ("digits", Sampler(), FP32),
    "d63e7bc26468d565e0b7f53aacce0f69f67de0feeecdb59cb6c8ec12c5f9c5cf": ("digits", FEW, FP32),
    "8ec9d9c01ed4f52fdfd72b51bee770672c3a1135f37c3c723bf6b97336b4fc3e": (
        "digits", Sampler(steps=4, name="euler"), FP32
    ),
    "715bc92b87ba208a171bd68a2a2dbdbd02131569f482eca960a70761b5d52d5f": ("digits", FEW, BF16),
    "054ebfeb7e483cbdb4a857cdbc2b5a600f9c45441e58be36bf133ed98abea8de": ("photos", FEW, FP32),
}  # fmt: skip


@pytest.mark.parametrize(("pinned", "settings"), PINNED.items())
def test_shipped_teachers_have_the_fingerprints_in_the_manifests_of_their_pairs(pinned, settings):
    name, sampler, execution = settings
    teacher = open_teacher(SHIPPED / f"{name}-teacher", sampler, "cpu", execution)
    assert teacher.fingerprint == pinned


def test_the_digits_teacher_draws_the_digits_it_is_asked_for() -> None:
    teacher = open_teacher(SHIPPED / "digits-teacher", Sampler(), "cpu")
    classifier = Classifier.from_pretrained(SHIPPED / "digits-features", use_safetensors=True)
    noise, labels = draw(0, range(20), teacher.image_shape, teacher.num_classes)
    images = teacher(noise, labels)
    assert images.isfinite().all()
    with torch.no_grad():
        named = classifier(images.clamp(-1, 1)).argmax(1)
    assert float((named == labels).float().mean()) >= 0.9
