"""Checkpoints of NVlabs EDM, read without executing anything in them, and their networks."""
