"""GETPipeline, as users of diffusers call it."""

import json
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

from data import SHIPPED
from get import GETPipeline
from get.errors import InputError
from get.images import from_pil, to_uint8
from pipeline.jobs.students import load_pipeline

from .problems import as_users_run_it as as_users_run_it
from .problems import normal, seeded, tiny_get, tiny_vit

PLAIN, LABELLED, VIT = tiny_get(), tiny_get(num_classes=10, channels=1), tiny_vit(num_classes=10)
RANDOM_START = tiny_get(num_classes=10, z0="normal")
MODELS = [PLAIN, LABELLED, RANDOM_START, VIT]
EVERY_MODEL = pytest.mark.parametrize("model", MODELS, ids=["plain", "labelled", "normal", "ViT"])


def make(model, output_type: Literal["pil", "np", "pt"] = "pt", **arguments):
    output = GETPipeline(model)(output_type=output_type, return_dict=False, **arguments)
    assert isinstance(output, tuple)
    return output[0]


def test_a_saved_pipeline_names_the_module_of_its_model(tmp_path):
    for model, expected in ((PLAIN, ["get.models.get", "GET"]), (VIT, ["get.models.vit", "ViT"])):
        GETPipeline(model).save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index.pop("_diffusers_version")
        assert index == {"_class_name": "GETPipeline", "model": expected, "vae": [None, None]}
        assert (tmp_path / "model" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_pipeline_saved_before_there_was_a_vae_can_be_loaded(tmp_path):
    GETPipeline(PLAIN).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["vae"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = GETPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.vae is None
    assert torch.equal(make(loaded.model, latents=normal(2)), make(PLAIN, latents=normal(2)))


@EVERY_MODEL
def test_a_loaded_pipeline_makes_the_same_images(model, tmp_path):
    GETPipeline(model).save_pretrained(tmp_path)
    loaded = GETPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert type(loaded.model) is type(model)
    before = make(model, batch_size=2, generator=seeded(0))
    assert torch.equal(make(loaded.model, batch_size=2, generator=seeded(0)), before)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_output_types_show_the_same_images(channels, mode):
    model = tiny_get(channels=channels)
    noise = normal(2, channels)
    pil, array, tensor = (make(model, kind, latents=noise) for kind in ("pil", "np", "pt"))
    expected = model(noise).detach()
    torch.testing.assert_close(tensor, (expected / 2 + 0.5).clamp(0, 1))
    assert (tensor.shape, tensor.dtype) == ((2, channels, 8, 8), torch.float32)
    assert 0 <= tensor.min() < tensor.max() <= 1
    assert isinstance(array, np.ndarray)
    assert (array == tensor.permute(0, 2, 3, 1).numpy()).all()
    assert all(isinstance(image, Image.Image) and image.mode == mode for image in pil)
    assert torch.equal(torch.stack([from_pil(image) for image in pil]), to_uint8(expected))


def test_the_default_output_is_diffusers_own_with_pil_images():
    output = GETPipeline(PLAIN)(batch_size=3, generator=seeded(0))
    assert isinstance(output, ImagePipelineOutput)
    assert [type(image) for image in output.images] == [Image.Image] * 3


@EVERY_MODEL
def test_the_same_generator_gives_the_same_images(model):
    first, again, other = (make(model, batch_size=2, generator=seeded(s)) for s in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@EVERY_MODEL
def test_one_generator_an_image_makes_each_independent_of_the_batch(model):
    together = make(model, batch_size=4, generator=[seeded(s) for s in range(4)])
    for i in range(4):
        torch.testing.assert_close(make(model, generator=[seeded(i)])[0], together[i])
        torch.testing.assert_close(make(model, generator=seeded(i))[0], together[i])


@pytest.mark.parametrize("model", [LABELLED, VIT], ids=["GET", "ViT"])
def test_labels_may_be_one_for_all_a_list_or_a_tensor(model):
    noise = normal(3, model.channels)
    expected = (model(noise, torch.tensor([7, 7, 7])).detach() / 2 + 0.5).clamp(0, 1)
    for labels in (7, [7, 7, 7], torch.tensor(7), torch.tensor([7, 7, 7])):
        assert torch.equal(make(model, latents=noise, class_labels=labels), expected)
    mixed = make(model, latents=noise, class_labels=[7, 0, 9])
    torch.testing.assert_close(mixed[0], expected[0])
    assert not torch.equal(mixed[1], expected[1])


def test_labels_not_given_are_drawn_after_the_noise_and_cover_the_classes():
    generator = seeded(0)
    noise = torch.randn(40, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (40,), generator=generator)
    assert len(labels.unique()) == 10
    drawn = make(LABELLED, batch_size=40, generator=seeded(0))
    assert torch.equal(drawn, make(LABELLED, latents=noise, class_labels=labels))


def test_iterations_are_the_models_own_unless_given():
    noise = normal(2)
    images = [make(PLAIN, latents=noise, iterations=k) for k in (None, 6, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_normal_start_is_drawn_after_noise_and_labels():
    generator = seeded(3)
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (2,), generator=generator)
    z0 = torch.randn(2, 16, 16, generator=generator)
    expected = (RANDOM_START(noise, labels, z0=z0).detach() / 2 + 0.5).clamp(0, 1)
    assert torch.equal(make(RANDOM_START, batch_size=2, generator=seeded(3)), expected)


def test_latents_decide_the_batch_size():
    assert make(PLAIN, latents=normal(3), batch_size=7).shape == (3, 3, 8, 8)


def test_a_model_that_was_compiled_and_put_back_makes_the_images():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipeline = GETPipeline(tiny_vit(num_classes=None))
    compiled: Any = torch.compile(pipeline.model, backend=count)
    pipeline.model = compiled
    pipeline(latents=normal(2), output_type="pt")
    assert graphs


def test_no_gradient_is_kept():
    assert not make(PLAIN, generator=seeded(0)).requires_grad


BAD_INPUT = {
    "unknown output": (PLAIN, {"output_type": "jpeg"}),
    "label of an unconditional model": (PLAIN, {"class_labels": 0}),
    "negative label": (LABELLED, {"class_labels": -1}),
    "label too high": (LABELLED, {"class_labels": [3, 10]}),
    "too many labels": (LABELLED, {"class_labels": [1, 2, 3]}),
    "too few labels": (LABELLED, {"class_labels": [1]}),
    "labels that are no whole numbers": (LABELLED, {"class_labels": 1.7}),
    "labels of text": (LABELLED, {"class_labels": "three"}),
    "labels of two dimensions": (LABELLED, {"class_labels": torch.tensor([[1, 2]])}),
    "iterations of a ViT": (VIT, {"iterations": 3}),
    "no image": (LABELLED, {"batch_size": 0}),
    "part of an image": (LABELLED, {"batch_size": 2.5}),
    "no iteration": (PLAIN, {"iterations": 0}),
    "half an iteration": (PLAIN, {"iterations": 1.5}),
    "a tolerance below 0": (PLAIN, {"tol": -1}),
    "latents of another shape": (PLAIN, {"latents": torch.zeros(2, 3, 6, 6)}),
    "latents of numpy": (PLAIN, {"latents": np.zeros((2, 3, 8, 8))}),
    "latents of one image": (PLAIN, {"latents": torch.zeros(3, 8, 8)}),
    "a seed for a generator": (PLAIN, {"generator": 3}),
    "a tolerance of text": (PLAIN, {"tol": "small"}),
    "true as a number of images": (PLAIN, {"batch_size": True}),
    "complex labels": (LABELLED, {"class_labels": torch.tensor([1j, 2j])}),
    "too few generators": (PLAIN, {"generator": [seeded(0)]}),
    "too many generators": (PLAIN, {"generator": [seeded(0), seeded(1), seeded(2)]}),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("model", "arguments"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_with_what_was_expected(model, arguments):
    with pytest.raises(InputError, match=r"^expected .*, got"):
        GETPipeline(model)(**{"batch_size": 2} | arguments)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2)])
def test_a_pipeline_of_something_else_is_refused(model):
    with pytest.raises(InputError, match=r"expected a GET, a ViT or another Student as model, got"):
        GETPipeline(model)


def test_a_folder_of_another_pipeline_or_none_is_refused(tmp_path):
    for folder, found in (
        (SHIPPED / "digits-teacher", "got DiffusionPipeline"),
        (tmp_path, "no model_index"),
    ):
        with pytest.raises(InputError, match=rf"expected a GETPipeline in .*{found}"):
            GETPipeline.from_pretrained(folder, use_safetensors=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"width": 32}, "shapes that config.json"),
        ({"depth": 2}, "got 12 too few and 0 too many"),
        ({"depth": 0}, "got 0 too few and 12 too many"),
        ({"heads": 5}, "a width that 4 and 5 heads divide"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(changed, told, tmp_path):
    GETPipeline(PLAIN).save_pretrained(tmp_path)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(InputError, match=told):
        GETPipeline.from_pretrained(tmp_path, use_safetensors=True)
    with pytest.raises(InputError, match=told):
        load_pipeline(tmp_path, torch.device("cpu"))


def test_images_stop_iterating_by_their_residual_and_alone_as_in_a_batch():
    model = tiny_get()
    pipeline, noise = GETPipeline(model), normal(6)
    made, exact = (
        pipeline(latents=noise, iterations=40, tol=tol, output_type="pt", return_dict=False)[0]
        for tol in (1e-2, 0.0)
    )
    evaluations = model.solve(noise, None, 40, None, None, tol=1e-2).evaluations
    assert evaluations.max() < 40
    torch.testing.assert_close(made, exact, rtol=0, atol=0.05)
    (alone,) = pipeline(
        latents=noise[2:3], iterations=40, tol=1e-2, output_type="pt", return_dict=False
    )
    torch.testing.assert_close(alone, made[2:3])
    with pytest.raises(InputError, match="leave iterations, tol and delta out"):
        GETPipeline(tiny_vit())(latents=noise, tol=0.1)
