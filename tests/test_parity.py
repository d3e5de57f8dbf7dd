"""Parity with numbers recorded from locuslab/get (torchdeq 0.1.0, timm 1.0.31) in float32.

`golden/` holds the numbers only; the models that made them are described by their configuration:
8x8 images, 3 channels, patches of 2, width 32, two blocks each, two heads, random weights.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from get.ema import EMA
from get.equilibrium import Gradient, Implicit, Outcome, Select, Unrolled, fixed_point
from get.errors import InputError
from get.losses import IterateLoss, geometric_weights
from get.models import GET, ViT
from get.models.locuslab import build_from, from_locuslab, rename

from .locuslab_files import locuslab_state

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def part(record: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors `prefix.<their key>` of a record under our names."""
    return from_locuslab(
        {k.removeprefix(prefix + "."): v for k, v in record.items() if k.startswith(prefix + ".")}
    )


def locuslab_get(record: dict[str, Tensor], **options) -> GET:
    """Build a GET as locuslab/get is: plain map from a normal start, no policy of ours."""
    model = GET(
        image_size=8,
        width=32,
        depth=2,
        equilibrium_depth=2,
        heads=2,
        num_classes=10 if "labels" in record else None,
        z0="normal",
        map="plain",
        **options,
    )
    model.load_state_dict(part(record, "state"))
    return model


def locuslab_vit(record: dict[str, Tensor]) -> ViT:
    model = ViT(image_size=8, width=32, depth=2, heads=2, num_classes=10)
    model.load_state_dict(part(record, "state"))
    return model


def assert_near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


GETS = pytest.mark.parametrize("name", ["get_uncond", "get_cond"])


@GETS
def test_tokens_injection_and_iterates_equal_locuslabs(name):
    record = golden(name)
    model, labels = locuslab_get(record), record.get("labels")
    tokens, label = model.embed(record["noise"], labels)
    assert_near(tokens, record["tokens_in"])
    for block in model.blocks:
        tokens = block(tokens, label)
    assert_near(tokens, record["tokens_out"])
    assert_near(model.injection(tokens), record["injection"])
    states = model.trajectory(record["noise"], labels, z0=record["z0"]).states
    assert_near(torch.stack(states), record["z_iterates"])


def test_a_new_models_position_table_equals_the_references():
    new = GET(image_size=8, width=32, heads=2).embed.position
    torch.testing.assert_close(new.data, golden("get_uncond")["state.pos_embed"], rtol=0, atol=1e-7)


@GETS
def test_training_images_losses_and_gradients_equal_locuslabs(name):
    record = golden(name)
    model, labels = locuslab_get(record), record.get("labels")
    images = model.trajectory(record["noise"], labels, z0=record["z0"]).images
    assert_near(images, record["train_outputs"])
    losses = IterateLoss(model)(record["noise"], labels, record["target"], record["z0"])
    assert_near(losses.iterates, record["loss_list"])
    loss = (geometric_weights(6, 0.8) * losses.iterates).sum()
    assert_near(loss, record["loss"])
    loss.backward()
    assert_near(gradients(model), part(record, "grad"))


@GETS
def test_evaluation_returns_locuslabs_iterate_of_least_residual(name):
    record = golden(name)
    model, labels = locuslab_get(record, select="lowest_residual"), record.get("labels")
    with torch.no_grad():
        images = model(record["noise"], labels, z0=record["z0"])
        path = model.trajectory(record["noise"], labels, z0=record["z0"]).states
    assert path is not None
    assert_near(images, record["eval_output"])
    z = torch.stack([record["z0"], *path])
    steps = (z[1:] - z[:-1]).flatten(2).norm(dim=2).T
    torch.testing.assert_close(steps, record["eval_residual_trace"], rtol=1e-5, atol=1e-5)
    assert torch.equal(steps.argmin(1) + 1, record["eval_nstep"])
    assert len(record["eval_nstep"].unique()) == 3  # the record shows more than "the last one"


def test_vit_images_loss_and_gradients_equal_locuslabs():
    record = golden("vit_cond")
    model = locuslab_vit(record)
    assert_near(model(record["noise"], record["labels"]), record["output"])
    loss = IterateLoss(model)(record["noise"], record["labels"], record["target"]).iterates.sum()
    assert_near(loss, record["loss"])
    loss.backward()
    assert_near(gradients(model), part(record, "grad"))


def test_five_adamw_steps_and_the_ema_follow_the_reference():
    record = golden("get_train5")
    model = locuslab_get(golden("get_uncond"))
    objective, ema = IterateLoss(model), EMA(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for step in range(5):
        losses = objective(record["noise"], None, record["target"], record["z0"][step]).iterates
        assert_near(losses, record["loss_lists"][step])
        loss = (geometric_weights(6, 0.8) * losses).sum()
        assert_near(loss, record["losses"][step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
    for ours, prefix in ((model.state_dict(), "final"), (ema.model.state_dict(), "ema")):
        theirs = part(record, prefix)
        for key in theirs:
            if key.endswith("attn.qkv.bias"):  # the key third has zero gradient, Adam moves it
                ours[key][32:64] = theirs[key][32:64] = 0
        assert_near(ours, theirs)


@pytest.mark.parametrize("name", ["get_uncond", "get_cond", "vit_cond"])
def test_every_reference_key_has_a_name_and_every_name_of_ours_is_met_once(name):
    record = golden(name)
    theirs = [key.removeprefix("state.") for key in record if key.startswith("state.")]
    model = locuslab_vit(record) if name == "vit_cond" else locuslab_get(record)
    assert sorted(map(rename, theirs)) == sorted(model.state_dict())


@pytest.mark.parametrize(("width", "ratio"), [(28, 2.2), (44, 0.345), (32, 6.0), (64, 1.7)])
def test_an_mlp_of_any_width_is_read_off_the_weights(width: int, ratio: float):
    made = GET(image_size=4, width=width, heads=2, depth=1, mlp_ratio=ratio, equilibrium_depth=1)
    theirs = locuslab_state(made)
    again = build_from(theirs, heads=2, iterations=1)
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize(
    "key",
    [
        "optimizer.step",
        "module.pos_embed",
        "pos_embed_2",
        "qkv_inj.bias",
        "blocks.x.norm1.weight",
        "deq_blocks.0.attn.qkv.weight_g",  # a weight-normed training
        "embed.position",
    ],
)
def test_an_unknown_key_is_refused_by_name(key):
    with pytest.raises(InputError, match=f"^expected .*, got '{key}'"):
        from_locuslab({key: torch.zeros(1)})


def test_implicit_mode_equals_the_reference():
    """Weights made so that the map contracts; gradient by `Implicit` through the whole model."""
    record = golden("get_ift")
    model = locuslab_get(record)

    def decoded(gradient: Gradient, select: Select = "best") -> Tensor:
        problem = model.problem(record["noise"], z0=record["z0"])
        solution = fixed_point(
            model.equilibrium_map,
            problem.z0,
            inputs=problem.inputs,
            gradient=gradient,
            max_steps=40,
            select=select,
        )
        return model.decode(solution.z)

    images = decoded(Implicit(max_steps=60, tol=0.0))
    assert_near(images, record["train_outputs"][0])
    loss = (images - record["target"]).abs().mean()
    assert_near(loss, record["loss"])
    loss.backward()
    gradients = part(record, "grad")
    assert len(gradients) > 50
    for name, theirs in gradients.items():
        assert_near(model.get_parameter(name).grad, theirs)
    with torch.no_grad():
        assert_near(decoded(Unrolled()), record["eval_output"])
        assert_near(decoded(Unrolled(), select="lowest_residual"), model.decode(record["z_star"]))


def test_random_weights_of_the_reference_drift_and_are_not_called_converged():
    record = golden("get_uncond")
    model = locuslab_get(record, iterations=400)
    with torch.no_grad():
        z0, inputs = model.problem(record["noise"], z0=record["z0"])
        solution = fixed_point(model.equilibrium_map, z0, inputs=inputs, max_steps=300, tol=1e-2)
    assert Outcome.CONVERGED not in solution.outcome
    assert Outcome.DRIFT in solution.outcome
