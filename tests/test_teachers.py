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
CLASSES = [name for name in FORMATS if "classes" in name]


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a tiny teacher of random weights."""
    return FORMATS[request.param](tmp_path / "teacher")


def test_a_teacher_makes_finite_float32_images_of_its_shape(folder: Path) -> None:
    teacher = open_teacher(folder, FEW, "cpu")
    images = sample(teacher)
    assert (images.shape, images.dtype) == ((3, 3, 8, 8), torch.float32)
    assert images.isfinite().all()
    assert teacher.image_shape == (3, 8, 8)
    assert teacher.evaluations == 7
    assert teacher.sampler == FEW
    assert teacher.execution == Execution()
    assert teacher.vae_source is None


def test_a_teacher_loaded_twice_makes_the_same_images(folder: Path) -> None:
    first, second = (open_teacher(folder, FEW, "cpu") for _ in range(2))
    assert torch.equal(sample(first), sample(first))
    assert torch.equal(sample(first), sample(second))


def test_an_image_depends_on_its_noise_and_label_only(folder: Path) -> None:
    teacher = open_teacher(folder, FEW, "cpu")
    noise, labels = draw(0, range(4), teacher.image_shape, teacher.num_classes)
    alone = [
        teacher(noise[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(4)
    ]
    torch.testing.assert_close(teacher(noise, labels), torch.cat(alone), rtol=0, atol=1e-4)
    if labels is not None:
        assert not torch.allclose(teacher(noise, (labels + 1) % 5), torch.cat(alone), atol=1e-3)


def test_the_fingerprint_does_not_depend_on_the_folder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there = (open_teacher(f, FEW, "cpu").fingerprint for f in (folder, copy))
    assert here == there
    assert len(here) == 64


def test_the_fingerprint_depends_on_the_number_of_steps(folder: Path) -> None:
    few, many = (open_teacher(folder, Sampler(steps=n), "cpu").fingerprint for n in (4, 5))
    assert few != many


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_given_exactly_to_a_conditional_teacher(name: str, tmp_path: Path) -> None:
    teacher = open_teacher(FORMATS[name](tmp_path / "teacher"), FEW, "cpu")
    assert teacher.num_classes == (5 if name in CLASSES else None)
    labels = None if name in CLASSES else torch.tensor([0])
    expected = "labels for this teacher, got none" if labels is None else "no labels .* got some"
    with pytest.raises(InputError, match=f"^expected {expected}$"):
        teacher(torch.zeros(1, 3, 8, 8), labels)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("labels", [[0, 5], [-1, 4]], ids=str)
def test_labels_of_no_class_are_refused(name: str, labels: list[int], tmp_path: Path) -> None:
    teacher = open_teacher(FORMATS[name](tmp_path / "teacher"), FEW, "cpu")
    message = f"^expected labels from 0 to 4, got {labels[0]} to {labels[1]}$"
    with pytest.raises(InputError, match=message):
        teacher(torch.zeros(2, 3, 8, 8), torch.tensor(labels))


# ------------------------------------------------------------------ those that come with the code


PINNED: list[tuple[Sampler, str]] = [  # in the manifests of pairs since the first were made
    (Sampler(), "d26623d1d47ccc7c91911d3696f993f965a557bc9439adc5ade569ec6b061b90"),
    (FEW, "d63e7bc26468d565e0b7f53aacce0f69f67de0feeecdb59cb6c8ec12c5f9c5cf"),
    (
        Sampler(steps=4, name="euler"),
        "8ec9d9c01ed4f52fdfd72b51bee770672c3a1135f37c3c723bf6b97336b4fc3e",
    ),
]


@pytest.mark.parametrize(("sampler", "pinned"), PINNED, ids=["default", "4 steps", "euler"])
def test_the_digits_teacher_has_the_fingerprint_in_the_manifests_of_its_pairs(
    sampler: Sampler, pinned: str
) -> None:
    assert open_teacher(SHIPPED / "digits-teacher", sampler, "cpu").fingerprint == pinned


def test_precision_and_the_photos_teacher_have_the_fingerprints_of_their_pairs() -> None:
    digits, photos = SHIPPED / "digits-teacher", SHIPPED / "photos-teacher"
    bf16 = open_teacher(digits, FEW, "cpu", Execution(mixed_precision="bf16")).fingerprint
    assert bf16 == "715bc92b87ba208a171bd68a2a2dbdbd02131569f482eca960a70761b5d52d5f"
    assert open_teacher(photos, FEW, "cpu").fingerprint == (
        "bbef571c0843b9e848aca6490d8a29f34393d050c3d5d198dcf6f49ff3a4114b"
    )


def test_the_digits_teacher_draws_the_digits_it_is_asked_for() -> None:
    teacher = open_teacher(SHIPPED / "digits-teacher", Sampler(), "cpu")
    classifier = Classifier.from_pretrained(SHIPPED / "digits-features", use_safetensors=True)
    noise, labels = draw(0, range(20), teacher.image_shape, teacher.num_classes)
    images = teacher(noise, labels)
    assert images.isfinite().all()
    with torch.no_grad():
        named = classifier(images.clamp(-1, 1)).argmax(1)
    assert float((named == labels).float().mean()) >= 0.9
