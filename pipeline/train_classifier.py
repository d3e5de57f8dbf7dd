"""Train the small classifiers whose features FID, KID and precision/recall use.

Sees the training part only; its accuracy on the held-out part stands in its card.
Next: evaluate.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import classifiers

if __name__ == "__main__":
    cli.check_arguments(classifiers)


import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from data.real import Labelled, real_images
from get.cost import count_parameters
from get.errors import InputError
from get.metrics.classifier import Classifier
from get.noise import step_seed
from pipeline.jobs.card import write_card
from pipeline.jobs.processes import check_processes
from pipeline.jobs.run import Run
from pipeline.recipes.settings_make import ClassifierConfig
from pipeline.training.updates import Updates

NOISE = 0.1  # standard deviation of the noise added to training images


def main(config: ClassifierConfig) -> None:
    """Train; the same command continues an unfinished run and does nothing after a finished one."""
    accelerator = Accelerator()
    check_processes(accelerator, at_most=1)
    training = real_images(config.train_data_dir, "training")
    images, labels = training.images.to(accelerator.device), training.labels.to(accelerator.device)
    if int(labels.max()) == 0:
        raise InputError(
            f"expected at least two classes in {config.train_data_dir}, got one; a feature network "
            "learns by telling classes apart: sort the pictures into a sub-folder a class"
        )
    torch.manual_seed(config.seed)
    model = Classifier(
        image_size=images.shape[-1],
        channels=images.shape[1],
        width=config.width,
        features=config.features,
        num_classes=int(labels.max()) + 1,
        body=config.body,
    ).to(accelerator.device)
    updates = Updates(config, model)

    with Run(config, accelerator) as run:
        start = run.restore(updates.state)
        for step in run.steps(
            start, updates.state, lambda folder, model: model.save_pretrained(folder)
        ):
            generator = torch.Generator().manual_seed(step_seed(config.seed, step))
            chosen = torch.randint(len(images), (config.global_batch_size,), generator=generator)
            batch = augment(images[chosen], config.background, generator)
            loss = F.cross_entropy(model(batch), labels[chosen])
            loss.backward()
            run.record(step, loss=loss, grad_norm=updates())
        if not (run.path / "card.json").exists():
            held_out = real_images(config.train_data_dir, "held_out")
            figures = {
                "parameters": count_parameters(model),
                "training_accuracy": accuracy(updates.average, training),
                "held_out_accuracy": accuracy(updates.average, held_out),
            }
            title = f"Feature network for {config.train_data_dir}"
            text = f"Small classifier ({config.body}); FID uses its penultimate features."
            write_card(run, title, text, figures)
    print(f"feature network {config.output_dir}")


def augment(
    images: Float[Tensor, "batch channels height width"],
    background: float | None,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """Shift a batch by at most one pixel (the background moves in) and add a little noise."""
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    border = (1, 1, 1, 1)
    padded = (
        F.pad(images, border, mode="replicate")
        if background is None
        else F.pad(images, border, value=background)
    )
    shifted = padded[:, :, down : down + height, right : right + width]
    return shifted + NOISE * torch.randn(shifted.shape, generator=generator).to(images.device)


@torch.no_grad()
def accuracy(model: Classifier, data: Labelled) -> float:
    """Return the share of images the classifier names rightly."""
    right = model(data.images.to(model.device)).argmax(1).cpu() == data.labels
    return round(float(right.float().mean()), 4)


if __name__ == "__main__":
    cli.run(main, classifiers)
