"""What `python -m pipeline.benchmark NAME` measures, a file each."""
