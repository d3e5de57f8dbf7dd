"""The user's own pictures: square, all of one size, one sub-folder per class."""

from pathlib import Path

import torch
from PIL import Image

from data.real.labelled import Labelled, Split
from get.errors import InputError
from get.images import from_pil, from_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def pictures(root: Path, split: Split) -> Labelled:
    """Return one part of a folder of pictures: every tenth one is held out.

    Its sub-folders, sorted by name, are the classes; without sub-folders there is one class.

    Raises:
        InputError: If the folder is missing, or its pictures are fewer than 10, damaged, not
            square, or of several sizes.
    """
    if not root.is_dir():
        raise InputError(
            f'expected "digits", "photos", or an image folder, got {root}; there is no such folder'
        )
    classes = sorted(p for p in root.iterdir() if p.is_dir()) or [root]
    files = [
        (path, label)
        for label, folder in enumerate(classes)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    chosen = [file for i, file in enumerate(files) if (i % 10 == 9) == (split == "held_out")]
    if len(files) < 10:
        raise InputError(
            f"expected pictures ({', '.join(SUFFIXES)}) in {root}, got {len(files)}; "
            "at least 10 are needed for a training and a held-out part"
        )
    pictures = []
    for path, _ in chosen:
        try:
            with Image.open(path) as image:
                pictures.append(from_pil(image))
        except OSError as error:
            raise InputError(
                f"expected a picture in {path}, got {type(error).__name__}; remove or replace it"
            ) from error
    shapes = sorted({tuple(p.shape) for p in pictures})
    if len(shapes) > 1 or shapes[0][1] != shapes[0][2]:
        raise InputError(
            f"expected square pictures of one size and mode in {root}, got shapes {shapes}; "
            "crop and resize them first"
        )
    return Labelled(from_uint8(torch.stack(pictures)), torch.tensor([label for _, label in chosen]))
