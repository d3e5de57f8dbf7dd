"""Teachers: noise (and label) to image, deterministic, with a fingerprint of all that matters."""

from pathlib import Path

from data.teachers.diffusers_folder import DiffusersTeacher as DiffusersTeacher
from data.teachers.diffusers_folder import Sampler as Sampler
from data.teachers.edm import edm_loss as edm_loss

SHIPPED = Path(__file__).parents[1] / "weights"
"""Folder of the teachers and feature networks that come with this repository."""
