"""GET and ViT: shapes, initial values, refusals."""

import pytest
import torch

from get.cost import count_macs, count_parameters
from get.errors import InputError
from get.models import GET, SIZES, ViT, build, layers
from get.sampling import generate

from .problems import as_users_run_it as as_users_run_it
from .problems import normal, seeded, tiny_get, tiny_vit

# size: parameters unconditional, parameters with 10 classes, keys, 10^9 multiply-accumulates
PUBLISHED = {
    "GET-T/2": (8_558_092, 8_565_772, 116, 7.0),
    "GET-M/2": (19_177_740, 19_189_260, 116, 15.14),
    "GET-S/2": (37_173_260, 37_188_620, 116, 31.2),
    "GET-B/2": (62_207_244, 62_230_284, 56, 81.2),
    "GET-B/2+": (83_481_612, 83_504_652, 116, 69.0),
    "ViT-S/2": (21_402_252, 21_413_772, 151, 6.04),
    "ViT-B/2": (85_271_820, 85_294_860, 151, 22.96),
    "ViT-L/2": (302_599_180, 302_629_900, 295, 80.5),
    "ViT-XL/2": (446_652_300, 446_686_860, 343, 118.4),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_published_parameters_keys_and_cost(size):
    unconditional, conditional, keys, giga_macs = PUBLISHED[size]
    with torch.device("meta"):
        model = build(size, image_size=32)
        labelled = build(size, image_size=32, num_classes=10)
        noise, labels = torch.empty(1, 3, 32, 32), torch.empty(1, dtype=torch.int64)
    assert count_parameters(model) == unconditional
    assert count_parameters(labelled) == conditional
    assert (len(model.state_dict()), len(labelled.state_dict())) == (keys, keys + 1)
    assert count_macs(lambda: model(noise)) / 1e9 == pytest.approx(giga_macs, rel=5e-3)
    assert count_macs(lambda: labelled(noise, labels)) == count_macs(lambda: model(noise))


@pytest.mark.parametrize("size", SIZES)
def test_every_named_size_can_be_built_and_makes_images_of_its_input_shape(size):
    with torch.device("meta"):
        model = build(size, image_size=16, channels=1)
        assert model(torch.empty(2, 1, 16, 16)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("ratio", [6, 0])
def test_macs_of_a_real_forward_follow_the_formula(ratio: int):
    n, d, iterations = 16, 16, 5
    model = tiny_get(equilibrium_mlp_ratio=float(ratio))
    injected = (4 + 2 * 4) * d * d * n + 2 * n * n * d
    iterated = 2 * ((4 + 2 * ratio) * d * d * n + 2 * n * n * d)
    borders = 2 * n * 12 * d + 6 * d * d * n  # patch convolution and decoder; injection
    expected = borders + injected + iterations * iterated
    assert count_macs(lambda: model(normal(1), iterations=iterations)) == expected


def test_a_coda_runs_once_after_the_last_iteration():
    n, d = 16, 16
    with_coda, without = tiny_get(coda_depth=2), tiny_get()
    blocks = 2 * ((4 + 2 * 4) * d * d * n + 2 * n * n * d)  # two blocks with MLPs of ratio 4
    for iterations in (1, 3):
        macs = [
            count_macs(lambda m=m, k=iterations: m(normal(1), iterations=k))
            for m in (with_coda, without)
        ]
        assert macs[0] - macs[1] == blocks
    z = torch.randn(2, n, d, generator=seeded(0))
    expected = z
    for block in with_coda.coda_blocks:
        expected = block(expected)
    assert torch.equal(with_coda.image_of(z), with_coda.decode(expected))
    images = with_coda.trajectory(normal(2), iterations=3).images
    torch.testing.assert_close(images[-1], with_coda(normal(2), iterations=3))


@pytest.mark.parametrize(
    "model", [GET(image_size=8, width=16), ViT(image_size=8, width=24)], ids=["GET", "ViT"]
)
def test_a_new_model_outputs_exactly_zero(model):
    assert model(normal(2)).abs().max() == 0


@pytest.mark.parametrize("build", [GET, ViT])
def test_a_new_model_is_initialised_as_published(build):
    model = build(image_size=8, width=64, heads=2, depth=1, num_classes=100)
    for name, weight in model.state_dict().items():
        if name == "embed.label.weight":
            assert weight.std() == pytest.approx(0.02, rel=0.05)
        elif "norm" in name:
            assert (weight == name.endswith("weight")).all()
        elif name.endswith("bias") or name.startswith("decode"):
            assert (weight == 0).all(), name
        elif name != "embed.position":  # Xavier-uniform as a matrix
            bound = (6 / (len(weight) + weight[0].numel())) ** 0.5
            assert 0.98 * bound < weight.abs().max() <= bound, name
            assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize("map", ["anchored", "plain"])
@pytest.mark.parametrize("z0", ["injection", "zeros"])
def test_every_iterate_is_what_a_shorter_call_returns(map, z0):
    model, noise = tiny_get(map=map, z0=z0, num_classes=10), normal(2)
    labels = torch.tensor([3, 9])
    images, residual, *_ = model.trajectory(noise, labels, iterations=4)
    for k in range(1, 5):
        torch.testing.assert_close(model(noise, labels, iterations=k), images[k - 1])
    assert residual is not None
    assert residual > 0


def test_the_default_number_of_iterations_is_the_configs():
    model = tiny_get(iterations=3)
    assert torch.equal(model(normal(2)), model(normal(2), iterations=3))
    assert len(model.trajectory(normal(2)).images) == 3
    with pytest.raises(ValueError, match="expected max_steps >= 1"):
        model(normal(2), iterations=0)


def test_anchored_and_plain_agree_on_the_first_iterate_and_part_on_the_second():
    noise = normal(2).double()
    plain, anchored = (tiny_get(map=m).double().trajectory(noise) for m in ("plain", "anchored"))
    torch.testing.assert_close(plain.images[0], anchored.images[0], rtol=0, atol=1e-13)
    assert (plain.images[1] - anchored.images[1]).abs().max() > 1e-3


def test_an_anchored_fixed_point_satisfies_its_equation():
    model = tiny_get().double()
    with torch.no_grad():
        for block in model.equilibrium_blocks:
            for weight in block.parameters():
                weight.mul_(0.3)  # so that the map contracts
        z = model.solve(normal(2).double(), None, 60, None, None).z
        x = model.blocks[0](model.embed(normal(2).double(), None)[0])
        u = model.injection(x).chunk(2, dim=-1)
        update = model.equilibrium_blocks[1](model.equilibrium_blocks[0](z, u[0]), u[1]) - z
    torch.testing.assert_close(z, x + update)


def test_a_normal_start_comes_from_the_generator_or_is_the_tensor_given():
    model, noise = tiny_get(z0="normal"), normal(2)
    first, again = (model(noise, generator=seeded(5)) for _ in range(2))
    assert torch.equal(first, again)
    start = torch.randn(2, 16, 16, generator=seeded(5))
    assert torch.equal(first, model(noise, z0=start))
    assert not torch.equal(first, model(noise, generator=seeded(6)))


def test_a_zero_start_is_a_tensor_of_zeros():
    noise = normal(2)
    assert torch.equal(
        tiny_get(z0="zeros")(noise), tiny_get(z0="normal")(noise, z0=torch.zeros(2, 16, 16))
    )


def test_lowest_residual_returns_the_iterate_after_the_shortest_step_of_each_sample():
    model, noise = tiny_get(select="lowest_residual", map="plain").double(), normal(8).double()
    z = torch.stack(model.trajectory(noise).states)
    assert z is not None
    tokens = model.blocks[0](model.embed(noise, None)[0])
    path = torch.stack([tokens, *z])
    best = (path[1:] - path[:-1]).flatten(2).norm(dim=2).argmin(0)
    expected = model.trajectory(noise).images[best, torch.arange(8)]
    torch.testing.assert_close(model(noise), expected)
    assert len(best.unique()) > 1


@pytest.mark.parametrize("model", [tiny_get(), tiny_vit()], ids=["GET", "ViT"])
def test_train_and_eval_mode_return_the_same(model):
    assert torch.equal(model.train()(normal(2)), model.eval()(normal(2)))


@pytest.mark.parametrize(
    "model", [tiny_get(num_classes=4), tiny_vit(num_classes=4)], ids=["GET", "ViT"]
)
def test_a_sample_does_not_depend_on_its_batch_mates(model):
    model, noise, labels = model.double(), normal(5).double(), torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(model(noise, labels)[3:4], model(noise[3:4], labels[3:4]))


@pytest.mark.parametrize(
    "model", [tiny_get(num_classes=4), tiny_vit(num_classes=4)], ids=["GET", "ViT"]
)
def test_labels_change_the_image(model):
    first, second = (model(normal(1), torch.tensor([label])) for label in (0, 1))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    "model",
    [
        tiny_get(num_classes=3, z0="zeros", map="plain", select="lowest_residual", iterations=2),
        tiny_vit(num_classes=3, patch_size=4),
    ],
    ids=["GET", "ViT"],
)
def test_saving_and_loading_keeps_every_bit_and_the_config(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, use_safetensors=True)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    public = [{k: v for k, v in m.config.items() if k[0] != "_"} for m in (model, loaded)]
    assert public[0] == public[1]
    labels = torch.tensor([0, 2])
    assert torch.equal(model(normal(2), labels), loaded(normal(2), labels))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        model = tiny_get().double().train()
        if enabled:
            model.enable_gradient_checkpointing()
        model.trajectory(normal(2).double()).images.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1])


UNCONDITIONAL, CONDITIONAL = tiny_get(), tiny_vit(num_classes=4)
LABEL = torch.tensor([1])
BAD_INPUT = {
    "unknown size": lambda: build("GET-Q/2", image_size=32),
    "indivisible patch": lambda: GET(image_size=9),
    "indivisible patch of a ViT": lambda: ViT(image_size=10, patch_size=4),
    "width not a multiple of 4": lambda: GET(width=30, heads=2),
    "width not a multiple of heads": lambda: ViT(width=64, heads=5),
    "unknown start": lambda: tiny_get(z0="nowhere"),
    "unknown map": lambda: tiny_get(map="flat"),
    "unknown select": lambda: tiny_get(select="first"),
    "wrong side": lambda: UNCONDITIONAL(torch.zeros(2, 3, 6, 6)),
    "wrong channels": lambda: UNCONDITIONAL(torch.zeros(2, 1, 8, 8)),
    "not square": lambda: UNCONDITIONAL(torch.zeros(2, 3, 8, 6)),
    "no batch": lambda: UNCONDITIONAL(torch.zeros(3, 8, 8)),
    "unexpected labels": lambda: UNCONDITIONAL(normal(2), torch.tensor([0, 1])),
    "one start for two": lambda: UNCONDITIONAL(normal(2), z0=torch.zeros(1, 16, 16)),
    "missing labels": lambda: CONDITIONAL(normal(2)),
    "one label for two": lambda: CONDITIONAL(normal(2), torch.tensor([1])),
    "two labels for one": lambda: CONDITIONAL(normal(1), torch.tensor([1, 2])),
    "no heads": lambda: tiny_get(heads=0),
    "no patches": lambda: tiny_vit(patch_size=0),
    "no equilibrium blocks": lambda: tiny_get(equilibrium_depth=0),
    "random start without source": lambda: tiny_get(z0="normal")(normal(2)),
    "random start of a number": lambda: tiny_get(z0="normal")(normal(2), generator=3),
    "blocks below none": lambda: tiny_get(depth=-1),
    "a ViT of less": lambda: tiny_vit(depth=-1),
    "a coda of less": lambda: tiny_get(coda_depth=-1),
    "half a block": lambda: tiny_get(depth=1.5),
    "two sides": lambda: tiny_get(image_size=(8, 8)),
    "no channels": lambda: tiny_vit(channels=0),
    "classes below none": lambda: tiny_get(num_classes=-3),
    "no iteration": lambda: tiny_get(iterations=0),
    "an MLP of nothing": lambda: tiny_vit(mlp_ratio=0.0),
    "equilibrium MLPs of less": lambda: tiny_get(equilibrium_mlp_ratio=-2.0),
    "noise of numpy": lambda: CONDITIONAL(normal(1).numpy(), LABEL),
    "noise in double precision": lambda: CONDITIONAL(normal(1).double(), LABEL),
    "noise of whole numbers": lambda: CONDITIONAL(normal(1).long(), LABEL),
    "a list of labels": lambda: CONDITIONAL(normal(1), [1]),
    "labels of numpy": lambda: CONDITIONAL(normal(1), LABEL.numpy()),
    "labels with a point": lambda: CONDITIONAL(normal(1), LABEL.float()),
    "a label too high": lambda: CONDITIONAL(normal(1), torch.tensor([4])),
    "a label below 0": lambda: CONDITIONAL(normal(1), torch.tensor([-1])),
    "a label too high for generate": lambda: generate(
        CONDITIONAL, normal(1), torch.tensor([4]), seed=0, indices=[0]
    ),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("call", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_with_what_was_expected(call):
    with pytest.raises(InputError, match=r"^expected .*, got"):
        call()


@pytest.mark.parametrize("model", [tiny_get(num_classes=10), tiny_vit(num_classes=10)])
def test_in_bf16_labels_lift_no_attention_to_float32_and_tokens_are_contiguous(model, monkeypatch):
    seen, attention = [], layers.F.scaled_dot_product_attention

    def spy(q, k, v):
        seen.append((q.dtype, k.dtype, v.dtype))
        return attention(q, k, v)

    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", spy)
    noise, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        images = model(noise, labels)
    assert {*seen} == {(torch.bfloat16,) * 3}
    assert images.dtype == torch.float32  # of which the loss takes differences
    assert not torch.equal(images, images.bfloat16().float())
    tokens, _ = model.embed(noise, labels)
    assert tokens.is_contiguous()
