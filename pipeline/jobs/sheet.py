"""A sheet of pictures under each other, each below its caption: how models are compared by eye."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

HEAD, GAP = 30, 10  # pixels for a caption and between pictures


def stacked(strips: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return one picture of captions and pictures."""
    font = ImageFont.load_default(18)
    width = max(image.width for _, image in strips) + 2 * GAP
    height = sum(image.height + HEAD + GAP for _, image in strips) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(sheet), GAP // 2
    for caption, image in strips:
        draw.text((GAP, y + 3), caption, fill="black", font=font)
        sheet.paste(image, (GAP, y + HEAD))
        y += image.height + HEAD + GAP
    return sheet
