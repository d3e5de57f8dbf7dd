"""Losses on iterates: weights, kinds, gradients."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.pairs import Pairs
from get.equilibrium import Implicit, Phantom
from get.errors import InputError
from get.losses import IterateLoss, geometric_weights, image_loss
from get.models import Equilibrium
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.step import micro_batch_losses

from .problems import normal, seeded, tiny_get, tiny_vit


def test_weights_of_six_iterates_are_powers_of_0_8_ending_at_1():
    expected = torch.tensor([0.32768, 0.4096, 0.512, 0.64, 0.8, 1.0])
    torch.testing.assert_close(geometric_weights(6, 0.8), expected)
    assert geometric_weights(6, 0.8).sum() == pytest.approx(3.68928)


def test_weight_of_a_single_iterate_is_1():
    assert geometric_weights(1, 0.8).tolist() == [1]


@pytest.mark.parametrize(("decay", "expected"), [(0.0, [0, 0, 1]), (1.0, [1, 1, 1])])
def test_decay_0_keeps_the_last_iterate_and_1_weighs_all_alike(decay, expected):
    assert geometric_weights(3, decay).tolist() == expected


@pytest.mark.parametrize(("loss", "expected"), [("l1", [0.5] * 4), ("l2", [0.25] * 4)])
def test_loss_of_an_image_that_is_off_by_half_everywhere(loss, expected):
    model = tiny_get(iterations=4)
    torch.nn.init.zeros_(model.decode.linear.weight)
    torch.nn.init.zeros_(model.decode.linear.bias)
    target = torch.full((2, 3, 8, 8), 0.5)
    assert IterateLoss(model, loss)(normal(2), None, target).iterates.tolist() == expected


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("classes", [None, 4])
def test_loss_of_each_iterate_is_the_mean_over_batch_and_pixels(loss, classes):
    model, noise, target = tiny_get(num_classes=classes), normal(3), normal(3, seed=2)
    labels = None if classes is None else torch.tensor([0, 3, 1])
    losses = IterateLoss(model, loss)(noise, labels, target)
    function = torch.nn.functional.l1_loss if loss == "l1" else torch.nn.functional.mse_loss
    images, residual, *_ = model.trajectory(noise, labels)
    assert residual is not None
    expected = torch.stack([function(image, target) for image in images])
    torch.testing.assert_close(losses.iterates, expected)
    assert losses.residual is not None
    assert torch.equal(losses.residual, residual)


def test_pseudo_huber_is_the_distance_of_images_that_differ_and_its_square_of_those_that_do_not():
    target, c = normal(4), 0.00054 * 192**0.5
    loss = image_loss("pseudo_huber")
    far, near = target + 0.5, target + 1e-5
    assert loss(far, target).item() == pytest.approx(0.5 - 0.00054, rel=1e-4)
    distance = 1e-5 * 192**0.5
    assert loss(near, target).item() == pytest.approx(
        distance**2 / (2 * c) / 192**0.5, rel=0.05
    )  # the target has but 24 bits


def test_pseudo_huber_lets_no_image_pull_harder_than_another():
    made = normal(2).requires_grad_()
    target = made.detach() + torch.tensor([0.1, 3.0]).view(2, 1, 1, 1)
    (gradient,) = torch.autograd.grad(image_loss("pseudo_huber")(made, target), made)
    near, far = gradient.flatten(1).norm(dim=1)
    assert near.item() == pytest.approx(far.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_a_perceptual_loss_that_cannot_be_downloaded_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"expected to download the weights of {name} .* got: "):
        image_loss(name)


@pytest.mark.network
@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_a_perceptual_loss_is_0_for_the_same_image_and_has_a_gradient(name):
    loss, target = image_loss(name), normal(2).clamp(-1, 1)
    assert loss(target, target).item() == pytest.approx(0, abs=1e-4)
    made = (target * 0.5).requires_grad_()
    loss(made, target).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0


def test_a_vit_has_one_iterate_and_no_residual():
    noise, target = normal(3), normal(3, seed=2)
    losses = IterateLoss(tiny_vit())(noise, None, target)
    expected = (tiny_vit()(noise) - target).abs().mean()
    torch.testing.assert_close(losses.iterates, expected[None])
    assert losses.residual is None


def test_a_normal_start_is_handed_on():
    model, noise, target = tiny_get(z0="normal"), normal(2), normal(2, seed=2)
    z0 = torch.randn(2, 16, 16, generator=seeded(0))
    expected = (model(noise, z0=z0, iterations=1) - target).abs().mean()
    torch.testing.assert_close(IterateLoss(model)(noise, None, target, z0).iterates[0], expected)


@pytest.mark.parametrize(
    "model",
    [
        tiny_get(num_classes=3),
        tiny_get(num_classes=3, map="plain", z0="zeros"),
        tiny_vit(num_classes=3),
    ],
    ids=["anchored", "plain", "ViT"],
)
def test_gradients_reach_every_trainable_parameter_and_no_other(model):
    labels = torch.tensor([0, 1, 2])
    IterateLoss(model)(normal(3), labels, normal(3, seed=2)).iterates[-1].backward()
    for name, parameter in model.named_parameters():
        if name == "embed.position":
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().max() > 1e-7, name


def test_gradients_of_all_iterates_agree_with_finite_differences():
    model, noise, target = tiny_get(iterations=3).double(), normal(1).double(), normal(1).double()
    objective, weights = IterateLoss(model, "l2"), geometric_weights(3, 0.8)

    def loss():
        return (weights * objective(noise, None, target).iterates).sum()

    loss().backward()
    for parameter in (model.injection.weight, model.embed.patch.weight, model.decode.norm.weight):
        direction = torch.randn(parameter.shape, generator=seeded(0), dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = loss()
            parameter -= 2e-6 * direction
            below = loss()
            parameter += 1e-6 * direction
        assert parameter.grad is not None
        slope = (parameter.grad * direction).sum()
        torch.testing.assert_close((above - below) / 2e-6, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", [Phantom(), Implicit()])
@pytest.mark.parametrize("iterations", [0, 2])
def test_every_supervised_sequence_ends_with_the_converged_state(gradient, iterations):
    model, noise, target = tiny_get(), normal(2), normal(2, seed=2)
    equilibrium = Equilibrium(gradient=gradient, max_steps=100, tol=1e-5)
    losses = IterateLoss(model, iterations=iterations, equilibrium=equilibrium)(noise, None, target)
    assert losses.iterates.shape == (iterations + 1,)
    assert losses.residual is not None
    assert losses.residual < 1e-5
    far = (model(noise, iterations=200) - target).abs().mean()
    torch.testing.assert_close(losses.iterates[-1], far, rtol=1e-4, atol=0)
    losses.iterates.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_no_gradient_of_the_converged_state_passes_the_iterates_before_it():
    model, noise, target = tiny_get(), normal(2), normal(2, seed=2)
    gradients = []
    for iterations in (0, 3):
        equilibrium = Equilibrium(gradient=Implicit(tol=1e-7), max_steps=100, tol=1e-7)
        module = IterateLoss(model.double(), iterations=iterations, equilibrium=equilibrium)
        loss = module(noise.double(), None, target.double()).iterates[-1]
        gradients.append(torch.autograd.grad(loss, [*model.equilibrium_blocks.parameters()]))
    for from_start, from_third in zip(*gradients, strict=True):
        torch.testing.assert_close(from_start, from_third, rtol=1e-4, atol=1e-8)


def test_a_vit_has_no_fixed_point_to_differentiate():
    with pytest.raises(InputError, match="expected a GET"):
        IterateLoss(tiny_vit(), equilibrium=Equilibrium(gradient=Phantom()))


def test_the_jacobian_penalty_of_a_get_estimates_its_explicit_jacobian():
    model, noise, target = tiny_get(iterations=2).double(), normal(1).double(), normal(1).double()
    drawn = IterateLoss(model)(noise, None, target, penalty_draws=300, generator=seeded(3)).penalty
    path = model.trajectory(noise)
    states, inputs = path.states, path.inputs
    jacobian = torch.autograd.functional.jacobian(
        lambda z: model.equilibrium_map(z, *inputs), states[-1].detach()
    )
    assert isinstance(jacobian, torch.Tensor)
    exact = jacobian.square().sum() / states[-1].numel()
    torch.testing.assert_close(drawn.detach(), exact, rtol=0.1, atol=0)


def test_the_jacobian_penalty_reaches_the_equilibrium_blocks_and_off_is_absent():
    model, noise, target = tiny_get(), normal(2), normal(2, seed=2)
    module = IterateLoss(model)
    assert module(noise, None, target).penalty is None
    penalty = module(noise, None, target, penalty_draws=1, generator=seeded(3)).penalty
    weight = model.get_parameter("equilibrium_blocks.0.attn.qkv.weight")
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert gradient.abs().sum() > 0


class Casts(TorchDispatchMode):
    """Counts how often a tensor is cast, by its place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ == "_to_copy":
            self.found[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_in_bf16_a_weight_is_cast_once_a_step_however_often_its_block_iterates(tmp_path):
    config = TrainConfig(output_dir=tmp_path, pairs="", mixed_precision="bf16")
    module = IterateLoss(tiny_get(iterations=3))
    with Casts() as casts:
        losses = micro_batch_losses(module, Pairs(normal(2), normal(2), None), None, config)
        losses.total(1.0).backward()
    matrices = [p for p in module.model.equilibrium_blocks.parameters() if p.ndim == 2]
    assert [casts.found[p.data_ptr()] for p in matrices] == [1] * len(matrices)
