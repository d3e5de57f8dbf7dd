"""The VAE that decodes a student's latents: what the pairs name, if that may be trusted.

A data set that somebody downloads must not choose what is downloaded next.
"""

from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from data.manifest import Manifest
from data.teachers.diffusers_folder import load_vae
from get.errors import InputError
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_train import TrainConfig


def find_vae(config: TrainConfig, manifest: Manifest) -> AutoencoderKL | None:
    """Load the VAE of these pairs; None if they are images.

    Raises:
        InputError: If there is none, or the pairs name one that nobody else names.
    """
    if (named := manifest.vae) is None:
        return None
    trusted = {recipe.pairs.teacher for recipe in RECIPES.values()}
    if config.vae is None and named not in trusted and not Path(named).is_dir():
        raise InputError(
            f"expected --vae, because these pairs are latents, got none; they name "
            f"{ascii(named)[:100]}, which is no folder here: give it if you trust it"
        )
    return load_vae(config.vae or named)
