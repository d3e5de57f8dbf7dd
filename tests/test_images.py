"""8-bit, floats and PIL: there and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from get.images import from_pil, from_uint8, grid, to_pil, to_uint8


def picture(channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (channels, 5, 7), generator=generator, dtype=torch.uint8)


def test_all_256_values_survive_float_and_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = from_uint8(values)
    assert torch.equal(to_uint8(floats), values)
    assert floats.dtype == torch.float32
    assert (floats.min(), floats.max()) == (-1, 1)


def test_rounding_errors_of_a_third_of_a_level_do_not_change_a_value():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for error in (-0.33, 0.33):
        assert torch.equal(to_uint8(from_uint8(values) + error / 127.5), values)


def test_values_beyond_the_range_are_clipped():
    values = torch.tensor([-torch.inf, -7.0, -1.01, -1.0, 0.0, 1.0, 1.01, 7.0, torch.inf])
    assert to_uint8(values.view(1, 1, 1, 9)).flatten().tolist() == [0] * 4 + [128] + [255] * 4


def test_quantising_is_scale_shift_and_truncate():
    x = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    expected = (x.float() * 127.5 + 128).clamp(0, 255).int()
    assert torch.equal(to_uint8(x.view(1, 1, 1, -1)).flatten().int(), expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_picture_survives_pil_and_back(channels, mode):
    image = to_pil(picture(channels))
    assert (image.mode, image.size) == (mode, (7, 5))
    assert torch.equal(from_pil(image), picture(channels))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_picture_survives_a_png_file(channels, mode, tmp_path):
    to_pil(picture(channels)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        assert torch.equal(from_pil(image), picture(channels))


def test_channels_are_red_green_blue():
    red = torch.zeros(3, 1, 1, dtype=torch.uint8)
    red[0] = 200
    assert to_pil(red).getpixel((0, 0)) == (200, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    assert torch.equal(from_pil(image), torch.full((3, 3, 4), 255, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("columns", "gap", "scale"), [(3, 1, 1), (2, 0, 3), (5, 2, 2), (7, 1, 1)])
def test_a_grid_holds_every_image_in_its_place_and_white_elsewhere(channels, columns, gap, scale):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(255, (5, channels, 2, 3), generator=generator, dtype=torch.uint8)
    rows = -(-5 // columns)
    sheet = grid(images, columns, scale=scale, gap=gap)
    width, height = columns * (3 + gap) - gap, rows * (2 + gap) - gap
    assert sheet.size == (scale * width, scale * height)
    pixels = np.array(sheet).reshape(scale * height, scale * width, channels)
    small = pixels[::scale, ::scale]
    assert (pixels == small.repeat(scale, 0).repeat(scale, 1)).all()
    white = np.full_like(small, 255)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (2 + gap), i % columns * (3 + gap)
        white[top : top + 2, left : left + 3] = image
    assert (small == white).all()
