"""sample.py: which images, into which files, and strips."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from get import GETPipeline
from get.errors import InputError
from get.images import from_pil
from pipeline.jobs.image_files import image_path
from pipeline.jobs.named_images import parse_seeds
from pipeline.jobs.strips import slerp

from .problems import normal, seeded, tiny_get, tiny_vit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a conditional model whose iteration starts at random."""
    folder = tmp_path_factory.mktemp("model")
    GETPipeline(tiny_get(channels=1, num_classes=10, z0="normal")).save_pretrained(folder)
    return folder


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return from_pil(picture).int()


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("0*.png"))


def test_seeds_are_ranges_and_single_numbers_each_once_in_their_order():
    assert parse_seeds("0-3,100, 7 ,2-4") == (0, 1, 2, 3, 100, 7, 4)
    for text in ("", "3-1", "a", "-1", "1--2", "1,,2", "0-99999999999", str(2**64)):
        with pytest.raises(InputError, match=r"^expected seeds"):
            parse_seeds(text)


def test_an_image_of_a_seed_does_not_depend_on_the_other_seeds(model, tmp_path, here):
    common = "sample", "smoke", "--model", model, "--output_dir"
    assert here(*common, tmp_path / "a", "--seeds", "0-4,100").code == 0
    assert here(*common, tmp_path / "b", "--seeds", "100,3", "--batch_size", 1).code == 0
    assert (numbers(tmp_path / "a"), numbers(tmp_path / "b")) == ([0, 1, 2, 3, 4, 100], [3, 100])
    for seed in (3, 100):
        a, b = (pixels(image_path(tmp_path / name, seed)) for name in "ab")
        assert (a - b).abs().max() <= 1
    # sample 0 of seed 0 is the first image of a run by indices too
    assert here(*common, tmp_path / "c", "--num_images", 2).code == 0
    first, again = (pixels(image_path(tmp_path / name, 0)) for name in "ac")
    assert (first - again).abs().max() <= 1
    refused = here(*common, tmp_path / "c", "--seeds", "0-4")
    assert refused.code == 2
    assert "seed was 0, is 'the number of the image'" in refused.err


def test_npz_and_tars_hold_the_pixels_and_labels_of_the_pngs(model, tmp_path, here):
    few = "--num_images", 5, "--class_labels", 7, 1, "--also", "npz", "webdataset"
    made = here("sample", "smoke", "--model", model, "--output_dir", tmp_path, *few)
    assert made.code == 0
    with np.load(tmp_path / "images.npz", allow_pickle=False) as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert (images.shape, images.dtype, labels.tolist()) == (
        (5, 8, 8, 1),
        np.uint8,
        [7, 1, 7, 1, 7],
    )
    with tarfile.open(tmp_path / "images-000000.tar") as tar:
        contents = {m.name: tar.extractfile(m) for m in tar.getmembers()}
        members = {name: file.read() for name, file in contents.items() if file is not None}
    assert len(members) == 10
    for i, image in enumerate(images):
        assert (pixels(image_path(tmp_path, i)).numpy() == image.transpose(2, 0, 1)).all()
        assert members[f"{i:09d}.cls"] == str(labels[i]).encode()
        with Image.open(io.BytesIO(members[f"{i:09d}.png"])) as picture:
            assert (np.array(picture) == image[:, :, 0]).all()


def test_strips_begin_and_end_with_the_images_they_name(model, tmp_path, here):
    flags = "--num_images", 4, "--strip", 2, "--interpolate", 1, 3
    assert here("sample", "smoke", "--model", model, "--output_dir", tmp_path, *flags).code == 0
    cell, step = 64, 72  # 8 pixels enlarged 8 times, one enlarged pixel apart
    way, path = (pixels(tmp_path / f"{n}.png") for n in ("interpolation-1-3", "strip-2"))
    assert way.shape[-1] == 10 * step - 8
    assert path.shape[-1] == 6 * step - 8  # the iterates of the model's own number
    for strip, column, number in ((way, 0, 1), (path, 5, 2)):
        left = column * step
        shown = strip[:, :cell:8, left : left + cell : 8]
        assert (shown - pixels(image_path(tmp_path, number))).abs().max() <= 1


def test_a_strip_of_a_model_that_does_not_iterate_is_refused_before_it_makes_images(tmp_path, here):
    GETPipeline(tiny_vit(channels=1)).save_pretrained(tmp_path / "vit")
    refused = here(
        *("sample", "smoke", "--model", tmp_path / "vit"),
        *("--output_dir", tmp_path / "images", "--strip", 0),
    )
    assert refused.code == 2
    assert "expected a model that iterates for a strip, got a ViT; leave strip out" in refused.err
    assert not (tmp_path / "images").exists()


def test_images_do_not_go_among_the_files_of_a_model(model, here):
    refused = here("sample", "smoke", "--model", model, "--output_dir", model)
    assert refused.code == 2
    assert "got " + str(model) + " with model_index.json; choose " in refused.err
    assert not (model / "sample.json").exists()


def test_the_way_between_two_noises_stays_on_their_sphere_at_even_angles():
    two = torch.randn(2, 1, 16, 16, generator=seeded(0))
    two = 16 * two / two.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    path = slerp(two, torch.linspace(0, 1, 5))
    torch.testing.assert_close(path[[0, -1]], two)
    flat = path.flatten(1).double()
    torch.testing.assert_close(flat.norm(dim=1), torch.full((5,), 16.0, dtype=torch.float64))
    cosines = (flat[1:] * flat[:-1]).sum(1) / 256
    torch.testing.assert_close(cosines, cosines[:1].expand(4))
    same = slerp(torch.stack([two[0], two[0]]), torch.linspace(0, 1, 3))
    torch.testing.assert_close(same, two[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_pipeline_in_half_precision_makes_the_same_images_within_it(model, dtype, atol):
    full = GETPipeline.from_pretrained(model, use_safetensors=True)
    loaded = GETPipeline.from_pretrained(model, use_safetensors=True, dtype=dtype)
    moved = GETPipeline.from_pretrained(model, use_safetensors=True).to(dtype)
    expected = call(full)
    for pipeline in (loaded, moved):
        assert pipeline.model.dtype == dtype
        images = call(pipeline)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, expected, rtol=0, atol=atol)


def call(pipeline: GETPipeline) -> torch.Tensor:
    start = [seeded(i) for i in range(2)]
    output = pipeline(
        latents=normal(2, 1), class_labels=[1, 2], generator=start, output_type="pt",
        return_dict=False,
    )  # fmt: skip
    assert isinstance(output, tuple)
    return output[0]
