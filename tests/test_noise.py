"""Noise and label of index i under a seed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from get.errors import InputError
from get.noise import draw, draw_start

LARGEST = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as published (Salmon et al. 2011), on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [b >> 64 ^ c[1] ^ k[0], b & LARGEST, a >> 64 ^ c[3] ^ k[1], a & LARGEST]
        k = [k[0] + 0x9E3779B97F4A7C15 & LARGEST, k[1] + 0xBB67AE8584CAA73B & LARGEST]
    return c


def box_muller(raw: list[int]) -> list[float]:
    uniform, half = [(x >> 11) / 2**53 for x in raw], len(raw) // 2
    radius = [math.sqrt(-2 * math.log1p(-u)) for u in uniform[:half]]
    angle = [2 * math.pi * u for u in uniform[half:]]
    pairs = list(zip(radius, angle, strict=True))
    return [r * math.cos(a) for r, a in pairs] + [r * math.sin(a) for r, a in pairs]


@pytest.mark.parametrize("key", [(0, 0), (7, 123456789), (LARGEST, 5), (5, LARGEST)])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_noise_is_box_muller_of_philox_and_the_label_is_drawn_next(key, count):
    image, start = (
        [x for block in range(1, 5) for x in philox([block, 0, 0, stream], list(key))]
        for stream in (0, 1)
    )
    even = count + count % 2
    noise, labels = draw(key[0], [key[1]], (count,), 10)
    for ours, raw in ((noise, image), (draw_start(key[0], [key[1]], (count,)), start)):
        expected = torch.tensor(box_muller(raw[:even])[:count])
        torch.testing.assert_close(ours[0], expected, rtol=2e-7, atol=0)
    assert labels is not None
    assert labels.tolist() == [image[even] * 10 // 2**64]


GOLDEN = {
    (0, 0): ([0.11655652, -0.6835324, 0.09819598], 5, [0.7829036, -0.8636266, 0.47404456]),
    (1, 2): ([0.8372904, 0.91293114, 0.19770536], 0, [-0.41446751, 0.8185367, -1.2413554]),
    (LARGEST, 0): ([-0.62080634, -0.33560458, 0.3875638], 3, [1.5132239, -1.0185485, 0.82335436]),
    (5, LARGEST): ([0.87307465, 0.98736966, 1.4487075], 0, [-2.0066552, 0.013121373, -0.17846306]),
}


@pytest.mark.parametrize(("seed", "index"), GOLDEN)
def test_noise_never_changes(seed, index):
    noise, label, start = GOLDEN[seed, index]
    drawn, labels = draw(seed, [index], (3,), 10)
    assert labels is not None
    assert labels.tolist() == [label]
    torch.testing.assert_close(drawn[0], torch.tensor(noise), rtol=0, atol=1e-7)
    started = draw_start(seed, [index], (3,))[0]
    torch.testing.assert_close(started, torch.tensor(start), rtol=0, atol=1e-7)


INTEGERS = st.integers(min_value=0, max_value=LARGEST)


@given(seed=INTEGERS, indices=st.lists(INTEGERS, min_size=1, max_size=6), count=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_a_draw_depends_on_its_seed_and_index_alone(seed, indices, count):
    together, labels = draw(seed, indices, (count,), 7)
    assert labels is not None
    for i, index in enumerate(indices):
        alone, label = draw(seed, [index], (count,), 7)
        assert label is not None
        assert torch.equal(alone[0], together[i])
        assert torch.equal(label, labels[i : i + 1])
    starts = draw_start(seed, indices, (count,))
    assert torch.equal(starts.flip(0), draw_start(seed, reversed(indices), (count,)))


def test_unlabelled_noise_equals_labelled_noise():
    noise, labels = draw(3, range(9), (3, 5, 5))
    assert labels is None
    assert torch.equal(noise, draw(3, range(9), (3, 5, 5), 10)[0])


@pytest.mark.parametrize("shape", [(1,), (3, 5, 5), (1, 8, 8), (16, 32)])
def test_noise_has_the_shape_and_dtype_promised(shape):
    noise, labels = draw(0, range(4), shape, 3)
    assert noise.shape == draw_start(0, range(4), shape).shape == (4, *shape)
    assert noise.dtype == torch.float32
    assert labels is not None
    assert labels.dtype == torch.int64


def test_noise_is_unit_normal_and_uncorrelated():
    noise = draw(0, range(2000), (101,))[0].double()
    flat = noise.flatten()
    n = len(flat)
    assert abs(flat.mean()) < 5 / n**0.5
    assert abs(flat.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(flat.pow(3).mean()) < 5 * (15 / n) ** 0.5
    assert abs(flat.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    correlation = (noise.T @ noise / len(noise)).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / len(noise) ** 0.5
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert abs(neighbours) < 5 / n**0.5


@pytest.mark.parametrize("classes", [1, 3, 10])
def test_labels_are_uniform_and_in_range(classes):
    labels = draw(0, range(3000), (1,), classes)[1]
    assert labels is not None
    counts = labels.bincount(minlength=classes).double()
    assert len(counts) == classes
    assert ((counts / 3000 - 1 / classes).abs() < 5 * (1 / classes / 3000) ** 0.5).all()


def test_labels_stay_in_range_for_very_many_classes():
    labels = draw(0, range(200), (1,), 2**40)[1]
    assert labels is not None
    assert 2**39 < labels.max() < 2**40


def test_the_start_is_another_stream_than_the_image():
    image, start = draw(0, range(1000), (50,))[0], draw_start(0, range(1000), (50,))
    assert abs((image * start).mean()) < 5 / 50_000**0.5


def test_close_large_seeds_and_indices_give_different_noise():
    names = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, LARGEST - 1, LARGEST]
    rows = torch.cat([draw(seed, names, (4,))[0] for seed in names])
    assert len(rows.unique(dim=0)) == len(names) ** 2


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_seeds_and_indices_out_of_range_are_refused(seed, index):
    with pytest.raises(InputError, match="expected seed and index"):
        draw(seed, [index], (2,))
    with pytest.raises(InputError, match="expected seed and index"):
        draw_start(seed, [index], (2,))
