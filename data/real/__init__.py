"""Real images: teachers and feature networks learn from them, and FID compares with them.

`digits.py` and `photos.py` are embedded sets, `cifar10.py` and `folder.py` read the user's files.
`sources.py` has them and others in the form in which fid.py measures.
"""

from pathlib import Path

from data.real.cifar10 import find_cifar10, read_cifar10
from data.real.digits import digits
from data.real.folder import pictures
from data.real.labelled import Labelled as Labelled
from data.real.labelled import Split as Split
from data.real.photos import photos
from get.images import from_uint8


def real_images(name: str, split: Split) -> Labelled:
    """Return one part of "digits", "photos", or a folder (see `cifar10.py`, `folder.py`).

    Raises:
        InputError: If the folder is missing or its pictures cannot be used.
    """
    embedded = {"digits": digits, "photos": photos}
    if name in embedded:
        return embedded[name](split)
    if find_cifar10(Path(name)) is not None:
        images, labels = read_cifar10(Path(name), split)
        return Labelled(from_uint8(images), labels)
    return pictures(Path(name), split)
