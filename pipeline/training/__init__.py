"""The training step and what it is built of; `pipeline/train.py` is the loop around it."""
