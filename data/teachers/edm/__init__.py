"""EDM: its preconditioning, its networks, and NVlabs' checkpoints, read as data.

`checkpoint.py` opens a teacher; `pickle_reader.py` executes nothing of what it reads.
"""
