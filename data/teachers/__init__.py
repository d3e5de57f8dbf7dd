"""Teachers: noise (and label) to image, deterministic, with a fingerprint of all that matters.

`settings.py` says how a teacher is run, `ode.py` samples, `teacher.py` joins a network to its
sampler. `open.py` opens any: `diffusers_folder.py` reads folders and repositories in diffusers
format, `edm/` checkpoints of NVlabs' EDM.
"""
