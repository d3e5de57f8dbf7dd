"""A tour from a teacher to a student, cell by cell: about ten minutes on two CPU cores.

Run it as it is (`python docs/tour.py`) or open it as a notebook: VS Code and Jupyter with jupytext
know the `# %%` cells. Run it again: what is finished is not repeated.
"""

# %% [markdown]
# Settings. A recipe is Python: frozen dataclasses with a default for everything.

# %%
from dataclasses import replace
from pathlib import Path

import torch

from data.reader import read_shard
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get import GETPipeline
from get.cost import count_macs
from get.equilibrium import Anderson, Outcome, Picard, fixed_point
from get.images import grid, to_uint8
from get.models import GET
from get.noise import draw
from pipeline import make_pairs, train
from pipeline.recipes import RECIPES

HERE, PAIRS, STEPS = Path("runs/tour"), 8192, 1500
recipe = RECIPES["digits"]
HERE.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# The teacher: a U-Net that was trained on scikit-learn's digits. Heun's method evaluates it 35
# times for an image.

# %%
teacher = open_teacher(recipe.pairs.teacher, Sampler(), "cpu")
noise, labels = draw(0, range(20), teacher.image_shape, teacher.num_classes)
theirs = teacher(noise, labels)
grid(to_uint8(theirs), 10, scale=8).save(HERE / "teacher.png")
teacher_macs = count_macs(lambda: teacher(noise[:1], None if labels is None else labels[:1]))
print(f"teacher: {teacher_macs / 1e6:.0f} million multiply-accumulates an image")

# %% [markdown]
# The pairs: the teacher turns noise into images once, and never has to run again. Shard i is a pure
# function of settings and i, so any number of jobs may write them, and be killed.

# %%
pairs = replace(recipe.pairs, output_dir=HERE / "pairs", num_pairs=PAIRS)
make_pairs.main(pairs)
shard = read_shard(HERE / "pairs", 0).as_floats()
print(f"a shard: noise {tuple(shard.noise.shape)}, images {tuple(shard.images.shape)}")

# %% [markdown]
# The student: a GET regresses noise to image. Half of every batch iterates a while before it is
# trained ("window training"), so that further iterations will help instead of harm. The Frechet
# phase of the recipe is left out, so no feature network is needed.

# %%
digits = recipe.students["digits"]
student = replace(
    digits,
    pairs=HERE / "pairs",
    output_dir=HERE / "student",
    holdout_shards=1,
    max_train_steps=STEPS,
    frechet_weight=0.0,
    feature_network=None,
    real_images=None,
)
train.main(student)

# %% [markdown]
# One call of the student makes an image. A run folder is a pipeline of diffusers.

# %%
pipeline = GETPipeline.from_pretrained(HERE / "student", use_safetensors=True)
model = pipeline.model
assert isinstance(model, GET)
with torch.no_grad():
    ours = model.images(noise, labels)
grid(to_uint8(torch.cat([theirs, ours])), 10, scale=8).save(HERE / "teacher-and-student.png")
macs = count_macs(lambda: model.images(noise[:1], None if labels is None else labels[:1]))
print(
    f"student: {macs / 1e6:.1f} million multiply-accumulates, {teacher_macs / macs:.0f} times fewer"
)

# %% [markdown]
# The dial: the same weights with more iterations come closer to the teacher's images.

# %%
for iterations in (1, 2, 4, 8, 16):
    with torch.no_grad():
        distance = (model.images(noise, labels, iterations=iterations) - theirs).abs().mean()
    print(f"{iterations:2} iterations: L1 distance to the teacher {distance:.4f}")

# %% [markdown]
# The equilibrium: what is iterated is a map with a fixed point. Any solver of the library finds it;
# every sample stops by its own residual and says how it ended.

# %%
with torch.no_grad():
    problem = model.problem(noise, labels)
    for solver in (Picard(), Anderson()):
        solution = fixed_point(
            model.equilibrium_map, problem.z0, inputs=problem.inputs,
            solver=solver, max_steps=100, tol=1e-3,
        )  # fmt: skip
        ended = {Outcome(int(k)).name: int(n) for k, n in zip(*solution.outcome.unique(
            return_counts=True), strict=True)}  # fmt: skip
        mean = solution.evaluations.float().mean()
        print(f"{type(solver).__name__}: {mean:.1f} evaluations on average, {ended}")
    distance = (model.image_of(solution.z) - theirs).abs().mean()
print(f"the equilibrium: L1 distance to the teacher {distance:.4f}")

# %% [markdown]
# From here: `./launch.sh` does the same at full length, with a ViT baseline, FID and a report;
# docs/training.md has many GPUs, docs/sampling.md exports, docs/equilibria.md the rest of the dial.
