"""Pairs in the layouts of other projects; `pipeline/convert.py export_pairs` writes them.

Both store tensors as torch.save does, so their readers unpickle: trust what you made yourself.
`data/locuslab_pairs.py` reads the second one again, without unpickling.
"""

import io
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from webdataset.writer import TarWriter

from data.manifest import Manifest, tar_name
from data.pairs import Pairs


def write_fastgen(folder: Path, shard: int, pairs: Pairs, manifest: Manifest) -> None:
    """Write a tar for the PairLoader of NVlabs/FastGen (fastgen/configs/data.py, February 2026).

    A sample has `latent.pth` (the image in [-1, 1], which FastGen calls real), `noise.pth` (unit
    normal) and, where labelled, `txt_emb.pth` (the condition: its class as a one-hot row). Without
    labels leave "condition" out of the loader's key_map.
    """
    pairs, classes = pairs.as_floats(), _one_hot(pairs, manifest)
    with TarWriter(str(folder / tar_name(shard)), mtime=0) as tar:
        for i in range(len(pairs)):
            parts = {"latent.pth": pairs.images[i], "noise.pth": pairs.noise[i]}
            if classes is not None:
                parts["txt_emb.pth"] = classes[i]
            # copies: of a part, torch.save writes the whole
            sample = {name: _saved(part.clone()) for name, part in parts.items()}
            tar.write({"__key__": f"{shard * len(pairs) + i:09d}", **sample})


def write_locuslab(folder: Path, shard: int, pairs: Pairs, manifest: Manifest) -> None:
    """Write latent/N.pkl and image/N.pkl as locuslab/get does, N the last index of the shard.

    The image is the sampler's output; the latent is noise, or noise and one-hot labels.
    """
    pairs, classes = pairs.as_floats(), _one_hot(pairs, manifest)
    name = f"{(shard + 1) * len(pairs) - 1:09d}.pkl"
    latent = pairs.noise if classes is None else [pairs.noise, classes]
    for kind, content in (("latent", latent), ("image", pairs.images)):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / name).write_bytes(_saved(content))


LAYOUTS: dict[str, Callable[[Path, int, Pairs, Manifest], None]] = {
    "fastgen": write_fastgen,
    "locuslab": write_locuslab,
}


def _one_hot(pairs: Pairs, manifest: Manifest) -> Tensor | None:
    if pairs.labels is None or manifest.num_classes is None:
        return None
    return F.one_hot(pairs.labels, manifest.num_classes).float()


def _saved(content: Tensor | list[Tensor]) -> bytes:
    """Return what torch.save writes; by itself, on a full disk, it may abort the process."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
