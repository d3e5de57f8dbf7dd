"""Verbs: one script a stage. Nobody imports this package but its own scripts."""
