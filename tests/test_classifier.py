"""The feature networks: the first ones are what they always were, and the judges differ."""

import pytest
import torch

from data import SHIPPED
from data.files import read_json
from data.real import real_images
from get.metrics.classifier import Classifier
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import classifiers

from .problems import seeded

# Mean of the features of 8 images, and some features of the first.
GOLDEN = {
    "digits": (3.7164955, [7.6646490, 0.0, 10.3603258, 0.0]),
    "photos": (12.5795650, [0.0, 27.2282028, 0.0, 0.0]),
}
EVERY_NETWORK = pytest.mark.parametrize("suffix", ["", "-b", "-c"])
EVERY_SET = pytest.mark.parametrize("images", GOLDEN)


def load(folder: str) -> Classifier:
    return Classifier.from_pretrained(SHIPPED / folder, use_safetensors=True)


@EVERY_SET
def test_the_first_networks_have_their_golden_features(images: str):
    network = load(f"{images}-features")
    channels, size = network.config["channels"], network.config["image_size"]
    noise = torch.randn(8, channels, size, size, generator=seeded(0)).clamp(-1, 1)
    features = network.features(noise).detach()
    mean, some = GOLDEN[images]
    assert float(features.mean()) == pytest.approx(mean, rel=1e-5)
    torch.testing.assert_close(features[0, :4], torch.tensor(some), rtol=1e-5, atol=1e-5)


@EVERY_SET
@EVERY_NETWORK
def test_a_shipped_network_tells_classes_apart_as_its_card_says(images: str, suffix: str):
    folder = f"{images}-features{suffix}"
    network, (held_out, labels) = load(folder), real_images(images, "held_out")
    with torch.no_grad():
        accuracy = float((network(held_out).argmax(1) == labels).float().mean())
    card = read_json(SHIPPED / folder / "card.json")
    assert card["held_out_accuracy"] == pytest.approx(accuracy, abs=0.003)
    assert accuracy > 0.95
    weights = SHIPPED / folder / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size <= {"digits": 500_000, "photos": 920_000}[images]


@EVERY_SET
def test_the_networks_of_a_recipe_differ_in_body_and_seed_and_are_shipped(images: str):
    settings = classifiers(RECIPES)
    three = [settings[f"{images}{suffix}"] for suffix in ("", "-b", "-c")]
    assert len({config.body for config in three}) == len({config.seed for config in three}) == 3
    evaluate = RECIPES[images].evaluate
    assert evaluate is not None
    assert [SHIPPED / c.output_dir.name for c in three] == list(evaluate.feature_networks)
    for config in three:
        shape = {"body": config.body, "width": config.width, "features": config.features}
        assert shape.items() <= {"body": "plain", **load(config.output_dir.name).config}.items()


@pytest.mark.parametrize("body", ["plain", "residual", "transformer"])
def test_features_are_those_of_each_image_alone_and_have_gradients(body):
    torch.manual_seed(0)
    network = Classifier(image_size=8, channels=3, width=8, features=12, num_classes=2, body=body)
    images = torch.randn(5, 3, 8, 8, generator=seeded(1)).requires_grad_()
    features = network.eval().features(images)
    assert features.shape == (5, 12)
    torch.testing.assert_close(network.features(images[2:3]), features[2:3])
    features.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amin((1, 2, 3)).all() or (features == 0).all(1).any()
