"""Theory checked in numbers; `pipeline/analyze.py` runs what `table.py` lists."""
