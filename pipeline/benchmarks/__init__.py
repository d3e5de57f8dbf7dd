"""What `python -m pipeline.benchmark NAME` measures, a file each; `table.py` lists them by name.

Every claim of speed or memory is a ratio of two things measured in one run, kept as JSON.
"""
