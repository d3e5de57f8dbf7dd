"""Feature networks by name: torch-fidelity's own features, from weights that are checked."""

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from data import SHIPPED
from data.real.features import RealFeatures, load_network
from get.errors import InputError
from get.images import from_uint8, to_pil
from get.metrics.dinov2 import GRID, PATCH, DinoV2
from get.metrics.features import Features, open_features
from get.metrics.networks import PUBLISHED, _read
from get.metrics.streaming import InceptionScore, Moments

CPU = torch.device("cpu")


class Drawn(FeatureExtractorInceptionV3):
    """An Inception that keeps its initial weights."""

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> Path:
    """Weights of Inception drawn at random, in a file of torch.save named after its sha256."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({}, folder / "empty.pth")
    network = Drawn("inception-v3-compat", ["2048"], str(folder / "empty.pth"))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), folder / "weights.pth")
    digest = sha256((folder / "weights.pth").read_bytes()).hexdigest()
    return (folder / "weights.pth").rename(folder / f"random-{digest[:8]}.pth")


def images(count: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    return (coarse.repeat_interleave(8, 2).repeat_interleave(8, 3) * 255).to(torch.uint8)


def test_inception_gives_torch_fidelitys_features_and_logits(inception):
    pixels = images(2)
    theirs = create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], cuda=False, verbose=False,
        feature_extractor_weights_path=str(inception),
    )  # fmt: skip
    ours = open_features(f"inception-v3-compat@{inception}", CPU)
    assert ours.name == f"inception-v3-compat@{inception.name}"
    for found, expected in zip(ours(from_uint8(pixels)), theirs(pixels), strict=True):
        assert found is not None
        assert torch.equal(found, expected)
    grey = from_uint8(pixels[:1, :1])
    assert torch.equal(ours(grey)[0], ours(grey.expand(-1, 3, -1, -1))[0])
    with pytest.raises(InputError, match=r"expected grey or RGB images .*, got 4 channels"):
        ours(torch.zeros(1, 4, 8, 8))


@pytest.mark.slow
def test_fid_and_score_in_inception_are_torch_fidelitys(inception, tmp_path):
    parts = [images(12), images(14, seed=1)]
    folders = [tmp_path / "made", tmp_path / "real"]
    for folder, part in zip(folders, parts, strict=True):
        folder.mkdir()
        for i, image in enumerate(part):
            to_pil(image).save(folder / f"{i:02d}.png")
    theirs = calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), fid=True, isc=True, cuda=False,
        verbose=False, save_cpu_ram=True, feature_extractor_weights_path=str(inception),
    )  # fmt: skip
    ours = open_features(f"inception-v3-compat@{inception}", CPU)
    score, gaussians = InceptionScore(12), []
    for part in parts:
        moments = Moments()
        for batch in from_uint8(part).split(5):
            vectors, logits = ours(batch)
            moments.add(vectors)
            assert logits is not None
            if part is parts[0]:
                score.add(logits)
        gaussians.append(moments.gaussian())
    fid = gaussians[0].distance(gaussians[1])
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    found = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert score.value() == pytest.approx(found, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_validation_measures_in_a_network_by_name(inception, pictures):
    real = RealFeatures(
        Path(f"inception-v3-compat@{inception}"), str(pictures), (3, 16, 16), CPU, 8
    )
    assert real.features["training"].shape == (36, 2048)
    assert real.features["held_out"].dtype == torch.float64


def test_weights_may_be_safetensors(inception, tmp_path):
    save_file(_read(inception), tmp_path / "w.safetensors")
    one, two = (open_features(f"inception-v3-compat@{f}", CPU)
                for f in (inception, tmp_path / "w.safetensors"))  # fmt: skip
    pixels = from_uint8(images(1))
    assert torch.equal(one(pixels)[0], two(pixels)[0])
    assert one.fingerprint != two.fingerprint


# ---------------------------------------------------------------- bad weights


def test_a_file_that_is_not_what_its_name_says_is_refused(inception, tmp_path):
    other = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    other.write_bytes(inception.read_bytes())
    with pytest.raises(InputError, match=r"expected weights with the sha256 6726825d\.\.\. in"):
        open_features(f"inception-v3-compat@{other}", CPU)


class Harm:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("inception-v3-compat", Harm()),
        ("inception-v3-compat", {"a": torch.zeros(2)}),
        ("vgg16", Harm()),
        ("vgg16", [1]),
        ("dinov2-vit-s-14", {"a": torch.zeros(2)}),
    ],
)
def test_code_and_other_tensors_are_refused_and_not_run(tmp_path, name, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"expected the weights of {name} in"):
        open_features(f"{name}@{tmp_path / 'w.pth'}", CPU)


def test_only_the_published_file_of_clip_is_opened(tmp_path):
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="expected the published file of clip-vit-l-14"):
        open_features(f"clip-vit-l-14@{tmp_path / 'w.pt'}", CPU)


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_weights_and_network_the_file_is_named(monkeypatch, tmp_path, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(InputError, match=r"got none, and the download of https.* failed"):
        open_features(name, CPU)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_networks_to_measure_in_are_not_trained_on(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a feature network to train on"):
        load_network(Path("inception-v3-compat"), (3, 32, 32), CPU)
    with pytest.raises(
        InputError, match=r"expected a feature network in .*, got OSError; name one"
    ):
        open_features(tmp_path / "none", CPU)
    with pytest.raises(InputError, match=r"expected images of \(1, 8, 8\) for digits-features"):
        open_features(SHIPPED / "digits-features", CPU)(torch.zeros(1, 3, 8, 8))


# ---------------------------------------------------------------- DINOv2, functions, formulas


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_interpolates_its_positions_to_other_sizes(gated):
    network = DinoV2(32, 2, 2, gated=gated)
    assert network(torch.randn(2, 3, PATCH * GRID, PATCH * GRID)).shape == (2, 32)
    constant = torch.ones_like(network.pos_embed[:, 1:])
    network.pos_embed.data[:, 1:] = constant
    positions = network._positions(16, 16)
    assert positions.shape == (1, 257, 32)
    torch.testing.assert_close(positions[:, 1:], constant[:, :256])


def test_a_function_is_a_feature_network():
    means = Features("means", "1", lambda x: (x.mean((2, 3)), None))
    vectors, logits = means(torch.ones(2, 3, 4, 4))
    assert (vectors.tolist(), logits) == ([[1.0] * 3] * 2, None)


@pytest.mark.parametrize("count", [10, 57, 300])
def test_streamed_figures_are_those_of_all_at_once(count):
    logits, other = 2 * torch.randn(count, 20), torch.randn(count, 20)
    score, moments = InceptionScore(count), [Moments(), Moments()]
    for part, second in zip(logits.split(33), other.split(33), strict=True):
        score.add(part)
        moments[0].add(part)
        moments[1].add(second)
    theirs = isc_features_to_metric(logits)
    found = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert score.value() == pytest.approx(found, rel=1e-9, abs=1e-9)
    whole = [fid_features_to_statistics(x.double()) for x in (logits, other)]
    fid = fid_statistics_to_metric(*whole, verbose=False)["frechet_inception_distance"]
    distance = moments[0].gaussian().distance(moments[1].gaussian())
    assert math.isclose(distance, fid, rel_tol=1e-6)


def test_fewer_images_than_parts_have_no_score():
    score = InceptionScore(9)
    score.add(torch.randn(9, 5))
    assert score.value() is None
