"""Train an image classifier whose features are an equilibrium, or its explicit twin, a ViT.

Sees the training part only; accuracy on the held-out part, with and without noise, stands in the
card. `NAME-explicit` is the twin. Next: certify.py.
"""

from pipeline import cli
from pipeline.recipes.settings_classify import image_classifiers

if __name__ == "__main__":
    cli.check_arguments(image_classifiers)


import torch
from accelerate import Accelerator

from data.real import Labelled, real_images
from get.cost import count_parameters
from get.equilibrium import Outcome
from get.models.image_classifier import EquilibriumClassifier, ImageClassifier
from pipeline.jobs.card import write_card
from pipeline.jobs.processes import check_processes
from pipeline.jobs.run import Run
from pipeline.recipes.settings_classify import ImageClassifierConfig
from pipeline.training.classify import ClassifierTraining, accuracy_of


def main(config: ImageClassifierConfig) -> None:
    """Train; the same command continues an unfinished run and does nothing after a finished one."""
    accelerator = Accelerator()
    check_processes(accelerator, at_most=1)
    data = real_images(config.train_data_dir, "training")
    on_device = Labelled(*(x.to(accelerator.device) for x in data))
    training = ClassifierTraining(config, on_device)
    updates = training.updates
    with Run(config, accelerator) as run:
        start = run.restore(updates.state)
        for step in run.steps(
            start, updates.state, lambda folder, model: model.save_pretrained(folder)
        ):
            run.record(step, **training(step))
        if not (run.path / "card.json").exists():
            held_out = real_images(config.train_data_dir, "held_out")
            figures = figures_of(updates.average, data, held_out, config.noise)
            kind = type(training.model).__name__
            text = f"{kind} trained with Gaussian noise of deviation {config.noise:g}."
            write_card(run, f"Image classifier for {config.train_data_dir}", text, figures)
            print(", ".join(f"{name} {value}" for name, value in figures.items()))
    print(f"image classifier {config.output_dir}")


def figures_of(
    model: ImageClassifier, training: Labelled, held_out: Labelled, noise: float
) -> dict[str, float]:
    """Return what the card says: parameters, accuracies, and how the solves end."""
    figures: dict[str, float] = {"parameters": count_parameters(model)}
    for name, data in (("training", training), ("held_out", held_out)):
        figures[f"{name}_accuracy"] = accuracy_of(model, data)
        figures[f"{name}_accuracy_with_noise"] = accuracy_of(model, data, noise)
    if isinstance(model, EquilibriumClassifier):
        noisy = torch.randn(held_out.images.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            solution = model.solve((held_out.images + noise * noisy).to(model.device))
        converged = (solution.outcome == int(Outcome.CONVERGED)).float().mean()
        figures["converged"] = round(float(converged), 4)
        figures["evaluations"] = round(float(solution.evaluations.float().mean()), 2)
        figures["residual"] = float(f"{float(solution.residual.mean()):.3g}")
    return figures


if __name__ == "__main__":
    cli.run(main, image_classifiers)
