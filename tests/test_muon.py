"""Muon makes every step orthogonal, matrix by matrix, and is what torch's own does."""

from dataclasses import replace

import pytest
import torch

from data.real import real_images
from get.errors import InputError
from get.muon import Muon, orthogonal
from pipeline import train_teacher
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import teachers
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.optimizers import build_optimizers

from .problems import tiny_get


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(8, 8), (3, 16, 64), (2, 64, 16)])
def test_the_singular_values_of_a_direction_are_near_1_and_its_vectors_those_of_the_gradient(shape):
    g = matrices(*shape)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    inside = u.mT @ orthogonal(g) @ v.mT
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < values.min() < values.max() < 1.25
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 16), (16, 32)])
@pytest.mark.parametrize(
    ("scaling", "theirs_calls_it", "decay"),
    [("spectral", "original", 0.0), ("match_rms_adamw", "match_rms_adamw", 0.3)],
)
def test_its_steps_are_those_of_torchs_muon(shape, scaling, theirs_calls_it, decay):
    """Which computes directions in bfloat16: to 2 % of a step."""
    ours, theirs = (torch.nn.Parameter(matrices(*shape)) for _ in range(2))
    optimizers = (
        Muon([ours], 0.1, weight_decay=decay, scaling=scaling),
        torch.optim.Muon([theirs], 0.1, weight_decay=decay, adjust_lr_fn=theirs_calls_it),
    )
    for seed in range(5):
        for p in (ours, theirs):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        for optimizer in optimizers:
            optimizer.step()
    moved = (ours - matrices(*shape)).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_stacked_matrices_move_as_they_would_alone():
    stacked = torch.nn.Parameter(matrices(24, 8))
    alone = [torch.nn.Parameter(part.clone()) for part in matrices(24, 8).chunk(3)]
    together, apart = Muon([{"params": [stacked], "stacked": 3}], 0.1), Muon(alone, 0.1)
    for _ in range(3):
        stacked.grad = stacked.detach().sin()
        for p in alone:
            p.grad = p.detach().sin()
        together.step()
        apart.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in alone]))


def test_a_kernel_moves_as_the_matrix_from_a_patch_to_a_pixel():
    kernel = torch.nn.Parameter(matrices(6, 4, 3, 3))
    matrix = torch.nn.Parameter(matrices(6, 4, 3, 3).flatten(1))
    optimizers = Muon([kernel], 0.1), Muon([matrix], 0.1)
    for _ in range(3):
        for p, optimizer in zip((kernel, matrix), optimizers, strict=True):
            p.grad = p.detach().sin()
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(matrix, matrices(6, 4, 3, 3).flatten(1))


def test_a_parameter_without_a_gradient_stays():
    p = torch.nn.Parameter(matrices(4, 4))
    Muon([p]).step()
    assert torch.equal(p, matrices(4, 4))


@pytest.mark.parametrize(("shape", "stacked"), [((4,), 1), ((4, 2, 2), 1), ((4, 2), 3)])
def test_what_is_no_matrix_is_refused(shape, stacked):
    with pytest.raises(InputError, match=r"expected a matrix of . equal parts, got .* shape \(4"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(shape))], "stacked": stacked}])


def test_every_trained_parameter_has_one_optimiser(tmp_path):
    student = tiny_get(num_classes=3)
    config = TrainConfig(output_dir=tmp_path, pairs=tmp_path, optimizer="muon")
    optimizers = build_optimizers(config, student)
    assert list(optimizers) == ["optimizer", "muon"]
    taken = [p for o in optimizers.values() for g in o.param_groups for p in g["params"]]
    trained = [p for p in student.parameters() if p.requires_grad]
    assert sorted(map(id, taken)) == sorted(map(id, trained))
    qkv = student.get_parameter("blocks.0.attn.qkv.weight")
    (group,) = (g for g in optimizers["muon"].param_groups if any(p is qkv for p in g["params"]))
    assert group["stacked"] == 3


def test_every_parameter_of_a_teacher_has_one_optimiser():
    config = replace(teachers(RECIPES)["photos"], muon_learning_rate=0.01)
    unet = train_teacher.build_unet(config, real_images("photos", "training"))
    optimizers = train_teacher.build_optimizers(config, unet)
    assert optimizers is not None
    taken = {
        name: {id(p) for group in o.param_groups for p in group["params"]}
        for name, o in optimizers.items()
    }
    names = {id(p): name for name, p in unet.named_parameters()}
    assert taken["muon"] | taken["optimizer"] == names.keys()
    assert not taken["muon"] & taken["optimizer"]
    by_muon = {names[p] for p in taken["muon"]}
    assert {"mid_block.resnets.0.conv1.weight", "time_embedding.linear_1.weight"} <= by_muon
    assert not {"conv_in.weight", "conv_out.weight", "class_embedding.weight"} & by_muon
    assert train_teacher.build_optimizers(teachers(RECIPES)["digits"], unet) is None
