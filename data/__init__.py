"""Pairs: from a teacher to batches. Noise and image made once, written once, read in any order."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the teachers and feature networks that come with this repository."""
