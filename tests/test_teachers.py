"""Teachers with EDM preconditioning in diffusers folders; the shipped digits one.

Other schedulers and networks are in test_diffusers_teachers.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.teachers import SHIPPED, DiffusersTeacher, Sampler, edm_loss
from data.teachers.edm.precondition import edm_denoise
from get.errors import InputError
from get.models.classifier import Classifier
from get.noise import draw

FEW = Sampler(steps=4)


def tiny_unet(num_classes: int | None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=num_classes,
    )


@pytest.fixture(params=[None, 5], ids=["unconditional", "conditional"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny teacher of random weights, saved by diffusers itself."""
    scheduler = EDMEulerScheduler(sigma_data=0.75)
    pipeline = DDPMPipeline(tiny_unet(request.param), scheduler)  # pyrefly: ignore[bad-argument-type]
    pipeline.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def sample(teacher: DiffusersTeacher, count: int = 3) -> Tensor:
    return teacher(*draw(0, range(count), teacher.image_shape, teacher.num_classes))


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.75, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_preconditioning_is_that_of_diffusers_own_scheduler(
    sigma: float, sigma_data: float
) -> None:
    unet, level = tiny_unet(None).double().eval(), torch.tensor(sigma, dtype=torch.float64)
    theirs = EDMEulerScheduler(sigma_data=sigma_data)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64) * sigma
    with torch.no_grad():
        scaled, time = theirs.precondition_inputs(x, level), theirs.precondition_noise(level)
        expected = theirs.precondition_outputs(x, unet(scaled, time).sample, level)
        found = edm_denoise(unet, x, level, None, sigma_data)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_sample_may_have_its_own_noise_level() -> None:
    unet, x, sigma = tiny_unet(5).eval(), torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    labels = torch.tensor([0, 4, 2])
    with torch.no_grad():
        together = edm_denoise(unet, x, sigma, labels, 0.75)
        alone = [
            edm_denoise(unet, x[i : i + 1], sigma[i], labels[i : i + 1], 0.75) for i in (0, 1, 2)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


class Raw(nn.Module):
    """A raw network in closed form, called as a `UNet2DModel`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.dtype_of = function, nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Tensor, time: Tensor, class_labels: Tensor | None = None
    ) -> SimpleNamespace:
        return SimpleNamespace(sample=self.function(x, time))


def loss_of(function: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> float:
    return float(edm_loss(Raw(function), images, None, 0.75, torch.Generator().manual_seed(0)))


def test_an_untrained_network_costs_one_on_gaussian_data_of_that_deviation() -> None:
    """With F = 0, D is the posterior mean; 1 / c_out^2 is one over the variance it leaves."""
    images = 0.75 * torch.randn(8192, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    assert loss_of(lambda x, time: torch.zeros_like(x), images) == pytest.approx(1, abs=0.02)


def test_the_network_that_knows_the_one_image_costs_nothing() -> None:
    def perfect(x: Tensor, time: Tensor) -> Tensor:
        s = (4 * time).exp().view(-1, 1, 1, 1)
        norm = (s**2 + 0.75**2).sqrt()
        return (0.3 - (0.75 / norm) ** 2 * (x * norm)) * norm / (s * 0.75)

    assert loss_of(perfect, torch.full((64, 1, 4, 4), 0.3)) == pytest.approx(0, abs=1e-6)


def test_training_noise_levels_are_log_normal() -> None:
    levels = []

    def listen(x: Tensor, time: Tensor) -> Tensor:
        levels.append(4 * time)
        return x

    loss_of(listen, torch.zeros(20_000, 1, 1, 1))
    assert float(levels[0].mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(levels[0].std()) == pytest.approx(1.2, abs=0.03)


def test_a_teacher_makes_finite_float32_images_of_its_shape(folder: Path) -> None:
    teacher = DiffusersTeacher(folder, FEW, "cpu")
    images = sample(teacher)
    assert (images.shape, images.dtype) == ((3, 3, 8, 8), torch.float32)
    assert images.isfinite().all()
    assert teacher.image_shape == (3, 8, 8)
    assert teacher.evaluations == 7


def test_a_teacher_loaded_twice_makes_the_same_images(folder: Path) -> None:
    first, second = (DiffusersTeacher(folder, FEW, "cpu") for _ in range(2))
    assert torch.equal(sample(first), sample(first))
    assert torch.equal(sample(first), sample(second))


def test_an_image_depends_on_its_noise_and_label_only(folder: Path) -> None:
    teacher = DiffusersTeacher(folder, FEW, "cpu")
    noise, labels = draw(0, range(4), teacher.image_shape, teacher.num_classes)
    alone = [
        teacher(noise[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(4)
    ]
    torch.testing.assert_close(teacher(noise, labels), torch.cat(alone), rtol=0, atol=1e-4)
    if labels is not None:
        assert not torch.allclose(teacher(noise, (labels + 1) % 5), torch.cat(alone), atol=1e-3)


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_a_weight(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][0] += 1e-6
    save_file(weights, path, {"format": "pt"})


def test_the_fingerprint_does_not_depend_on_the_folder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there = (DiffusersTeacher(f, FEW, "cpu").fingerprint for f in (folder, copy))
    assert here == there
    assert len(here) == 64


@pytest.mark.parametrize(
    "change",
    [change_a_weight]
    + [
        lambda f, field=field: edit(f / "scheduler" / "scheduler_config.json", **{field: 0.6})
        for field in ("sigma_data", "sigma_min", "sigma_max", "rho")
    ],
    ids=["weights", "sigma_data", "sigma_min", "sigma_max", "rho"],
)
def test_the_fingerprint_tells_teachers_apart(folder: Path, change: Callable[[Path], None]) -> None:
    before = DiffusersTeacher(folder, FEW, "cpu").fingerprint
    change(folder)
    assert DiffusersTeacher(folder, FEW, "cpu").fingerprint != before


def test_the_fingerprint_tells_sampler_settings_apart(folder: Path) -> None:
    few, many = (DiffusersTeacher(folder, Sampler(steps=n), "cpu").fingerprint for n in (4, 5))
    assert few != many


def drop_a_tensor(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_out.bias"]
    save_file(weights, path, {"format": "pt"})


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing folder": shutil.rmtree,
    "v-prediction": lambda f: edit(
        f / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"
    ),
    "no sigma_data": lambda f: (f / "scheduler" / "scheduler_config.json").write_text("{}"),
    "damaged index": lambda f: (f / "model_index.json").write_text('{"unet": ['),
    "damaged scheduler": lambda f: (f / "scheduler" / "scheduler_config.json").write_text(""),
    "damaged network": lambda f: (f / "unet" / "config.json").write_text('{"sample'),
    "missing weights": lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
    "cut weights": lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"1"),
    "a missing tensor": drop_a_tensor,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_folder_that_is_no_such_teacher_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], object]
) -> None:
    damage(folder)
    with pytest.raises(InputError, match=f"expected .* in {folder}.*, got ") as raised:
        DiffusersTeacher(folder, FEW, "cpu")
    assert "\n" not in str(raised.value)


def test_the_shipped_teacher_has_the_fingerprint_that_its_pairs_have_always_named() -> None:
    teacher = DiffusersTeacher(SHIPPED / "digits-teacher", Sampler(steps=18), "cpu")
    assert teacher.fingerprint == (
        "d26623d1d47ccc7c91911d3696f993f965a557bc9439adc5ade569ec6b061b90"
    )


def test_the_shipped_teacher_draws_the_digits_it_is_asked_for() -> None:
    teacher = DiffusersTeacher(SHIPPED / "digits-teacher", Sampler(), "cpu")
    classifier = Classifier.from_pretrained(SHIPPED / "digits-features", use_safetensors=True)
    noise, labels = draw(0, range(20), teacher.image_shape, teacher.num_classes)
    images = teacher(noise, labels)
    assert images.isfinite().all()
    with torch.no_grad():
        named = classifier(images.clamp(-1, 1)).argmax(1)
    assert float((named == labels).float().mean()) >= 0.9
