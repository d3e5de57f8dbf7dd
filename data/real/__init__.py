"""Real images: teachers and feature networks learn from them, and FID compares with them.

`digits.py` and `photos.py` are embedded sets, `folder.py` reads the user's own pictures.
"""

from pathlib import Path

from data.real.digits import digits
from data.real.folder import pictures
from data.real.labelled import Labelled as Labelled
from data.real.labelled import Split as Split
from data.real.photos import photos


def real_images(name: str, split: Split) -> Labelled:
    """Return one part of "digits", "photos", or a folder of pictures (see `folder.py`).

    Raises:
        InputError: If the folder is missing or its pictures cannot be used.
    """
    embedded = {"digits": digits, "photos": photos}
    return embedded[name](split) if name in embedded else pictures(Path(name), split)
