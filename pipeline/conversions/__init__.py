"""Conversions of files, one a module; convert.py runs them and table.py lists them."""
