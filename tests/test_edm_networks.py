"""EDM's networks: parity with golden numbers, a second implementation, known counts and formulas.

`golden/edm_ddpmpp_*.safetensors` were recorded from NVlabs EDM; their headers say how the networks
are made. They cover DDPM++ under EDM; edm_slow_network.py covers the rest.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from data.teachers.edm.checkpoint import build, open_checkpoint, save
from data.teachers.edm.layers import FourierEmbedding
from data.teachers.edm.networks import DhariwalConfig, DhariwalUNet, SongConfig, SongUNet
from data.teachers.edm.pickle_reader import Checkpoint
from data.teachers.heun import EdmHeun
from data.teachers.settings import Sampler
from get.errors import InputError

from .edm_files import Denoiser
from .edm_slow_network import SlowNetwork

GOLDEN = Path(__file__).parent / "golden"
SMALL: dict[str, Any] = {
    "img_resolution": 16,
    "img_channels": 3,
    "num_blocks": 1,
    "attn_resolutions": (8,),
}
NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}


FINGERPRINTS = {  # in the manifests of pairs made before; by the number of classes
    None: "4d99eac7941a41e7388aaeb2f38630658e262cb53de3aa0a992692e7b2927774",
    10: "9ca9d450b015c0967e4919770c8f4f2e56d458a6bf82951b62591baafca3f7d4",
}


class Golden(NamedTuple):
    checkpoint: Checkpoint
    denoiser: Denoiser
    record: dict[str, Tensor]
    one_hot: Tensor | None


@pytest.fixture(params=["uncond", "cond"])
def golden(request: pytest.FixtureRequest) -> Golden:
    with safe_open(GOLDEN / f"edm_ddpmpp_{request.param}.safetensors", "pt") as file:
        record = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    prefix = "state."
    state = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
    checkpoint = Checkpoint(header["precond"], json.loads(header["config"]), state)
    denoiser = Denoiser(*build(checkpoint))
    return Golden(checkpoint, denoiser, record, record.get("class_labels"))


def assert_near(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_embedding_network_and_denoiser_equal_edms(golden: Golden) -> None:
    _, denoiser, record, hot = golden
    for i, sigma in enumerate(record["sigma"]):
        x, c_noise = record["net_in"][i], record["c_noise"][i]
        assert_near(denoiser.model.embed(c_noise, hot), record["emb"][i])
        assert_near(denoiser.model(x, c_noise, hot), record["net_out"][i])
        assert_near(denoiser(record["x"][i], sigma, hot), record["denoised"][i])
        scalings = denoiser.precond.scalings(sigma)
        assert_near(record["x"][i] / scalings.spread, x)
        assert torch.equal(scalings.c_noise.expand(2), c_noise)


def test_levels_by_sample_augmentation_labels_and_no_label_equal_edms(golden: Golden) -> None:
    _, denoiser, record, hot = golden
    x, sigma = record["x"][2], record["sigma"][2]
    assert_near(denoiser(x, record["mixed_sigma"], hot), record["mixed_denoised"])
    augmented = denoiser(x, sigma, hot, record["augment_labels"])
    assert_near(augmented, record["augmented_denoised"])
    assert not torch.allclose(augmented, record["denoised"][2], atol=1e-3)
    if hot is not None:
        assert_near(denoiser(x, sigma, torch.zeros_like(hot)), record["denoised_nolabel"])
        assert_near(denoiser(x, sigma, None), record["denoised_nolabel"])
        assert not torch.allclose(record["denoised_nolabel"], record["denoised"][2], atol=1e-3)


def test_the_images_of_18_heun_steps_equal_edms(golden: Golden, tmp_path: Path) -> None:
    save(golden.checkpoint, tmp_path)
    teacher = open_checkpoint(tmp_path, Sampler(steps=18), "cpu")
    labels = None if golden.one_hot is None else golden.one_hot.argmax(1)
    images = teacher(golden.record["latents"], labels)
    assert images.dtype == torch.float32
    assert_near(images.double(), golden.record["heun18"])
    assert isinstance(teacher.ode, EdmHeun)
    levels = teacher.ode.sigmas
    sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2)])
    assert torch.equal(sigmas, golden.record["heun18_sigmas"])
    assert teacher.evaluations == 35
    assert teacher.fingerprint == FINGERPRINTS[teacher.num_classes]


CIFAR = {"img_resolution": 32, "img_channels": 3, "channel_mult": (2, 2, 2), "augment_dim": 9}
SIZES = {
    "cifar10-uncond-vp": (SongConfig(**CIFAR), 55_733_891, 425),
    "cifar10-cond-vp": (SongConfig(**CIFAR, label_dim=10), 55_735_299, 427),
    "cifar10-uncond-ve": (SongConfig(**CIFAR, **NCSNPP), 56_397_827, 432),
    "imagenet64": (
        DhariwalConfig(img_resolution=64, img_channels=3, label_dim=1000),
        295_899_267,
        553,
    ),
}


@pytest.mark.parametrize(("config", "parameters", "keys"), SIZES.values(), ids=SIZES)
def test_published_sizes_have_as_many_parameters_and_keys_as_edms(config, parameters, keys):
    with torch.device("meta"):
        network = SongUNet(config) if isinstance(config, SongConfig) else DhariwalUNet(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == keys


def randomised(config: SongConfig | DhariwalConfig) -> SongUNet | DhariwalUNet:
    torch.manual_seed(0)
    network = SongUNet(config) if isinstance(config, SongConfig) else DhariwalUNet(config)
    for name, p in network.named_parameters():
        is_norm = p.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(p, float(is_norm), p[0].numel() ** -0.5 if p.ndim > 1 else 0.3)
    if isinstance(network.map_noise, FourierEmbedding):
        torch.nn.init.normal_(network.map_noise.freqs, std=16)
    return network.requires_grad_(False)


KINDS = {
    "ddpm++": SongConfig(**SMALL, model_channels=16, channel_mult=(1, 2), label_dim=5),
    "ncsn++": SongConfig(
        **SMALL, **NCSNPP, model_channels=16, channel_mult=(1, 2, 2), augment_dim=9
    ),
    # blocks of width 32 have no attention although it is configured; 64 and 96 one head, 128 two
    "adm": DhariwalConfig(
        img_resolution=16,
        img_channels=3,
        num_blocks=2,
        attn_resolutions=(16, 8, 4, 2),
        model_channels=32,
        channel_mult=(1, 2, 3, 4),
        label_dim=5,
        augment_dim=9,
    ),
}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_network_equals_its_second_implementation(config: SongConfig | DhariwalConfig) -> None:
    network, draw = randomised(config), torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 3, 16, 16, generator=draw), torch.tensor([-1.3, 1.1])
    labels = torch.eye(5)[[3, 0]] if config.label_dim else None
    augment = torch.randn(2, 9, generator=draw) if config.augment_dim else None
    out = network(x, t, labels, augment)
    inputs = (None if v is None else v.double() for v in (x, t, labels, augment))
    expected = SlowNetwork(config, network.state_dict())(*inputs)  # pyrefly: ignore[bad-argument-type]
    scale = float(expected.std())
    assert scale > 0.1
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-5 * scale)
    one, all_ = (network(x, torch.full((n,), 0.4), labels) for n in (1, 2))  # level for the batch
    torch.testing.assert_close(one, all_, rtol=0, atol=1e-5)


def test_resampling_filters_are_buffers_of_sum_one() -> None:
    taps = SongUNet(KINDS["ncsn++"]).state_dict()["enc.8x8_down.conv0.resample_filter"]
    assert taps.shape == (1, 1, 4, 4)
    assert torch.equal(64 * taps[0, 0], torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0])]))


@pytest.mark.parametrize(
    "change",
    [
        {"channel_mult": ()},
        {"img_resolution": 15},
        {"model_channels": 6},
        {"model_channels": 0},
        {"num_blocks": 10**9},
        {"channel_mult": (1, -1)},
        {"resample_filter": (1, 2, 1)},
        {"model_channels": 132},
    ],
    ids=str,
)
def test_sizes_without_meaning_are_refused(change: dict) -> None:
    sizes: dict[str, Any] = {**SMALL, "channel_mult": (1, 2), **change}
    with pytest.raises(InputError, match=r"^expected .*, got "), torch.device("meta"):
        SongUNet(SongConfig(**sizes))


def test_attention_heads_must_share_the_width() -> None:
    with pytest.raises(InputError, match="3 attention heads share, got 224"):
        DhariwalUNet(DhariwalConfig(**SMALL, model_channels=224, channel_mult=(1,)))
