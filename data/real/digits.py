"""The embedded real data set: scikit-learn's 1,797 handwritten digits (8x8 grey, 10 classes).

1,400 are for training (teacher and feature network see no others) and 397 are held out; this split
never changes. Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import numpy as np
import torch

from data.real.labelled import Labelled, Split

CLASSES = 10
TRAINING = 1400


def digits(split: Split) -> Labelled:
    """Return one part of the split: float32 images in [-1, 1] and int64 labels.

    They are shuffled by raw Philox numbers, which are the same in every release of numpy.
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.argsort(np.random.Philox(key=0).random_raw(len(pixels)), kind="stable")
    part = order[:TRAINING] if split == "training" else order[TRAINING:]
    images = torch.from_numpy(pixels[part]).float().view(-1, 1, 8, 8) / 8 - 1  # 0..16 -> [-1, 1]
    return Labelled(images, torch.from_numpy(classes[part]).long())
