"""One job on disk: its run folder, settings, checkpoints, provenance, and its share of the work."""
