"""Pairs: from a teacher to batches. Noise and image made once, written once, read in any order."""
