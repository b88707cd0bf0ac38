"""`pecker-fast sample`: images from a model folder."""

from __future__ import annotations

from pathlib import Path

import click

from pecker_fast.commands.common import MODEL_ARGUMENT, machine_options, output_file, prepare
from pecker_fast.errors import PeckerError

__all__ = ["sample"]

TEACHER_STEPS = 50
MOST_COLUMNS = 20  # of the grid; an .npz holds the rest


@click.command(
    short_help="Draw images from a model.",
    epilog="""\b
Examples:
    pecker-fast sample demo/model --png after.png
    pecker-fast sample teacher --steps 50 --per-class 4 --png before.png
    pecker-fast sample demo/model --class Sneaker --per-class 1000 --npz sneakers.npz
    pecker-fast sample run/pipeline --prompt "a photo of a church" --per-class 4 --png church.png
""",
)
@MODEL_ARGUMENT
@click.option("--png", type=click.Path(path_type=Path), help="Write a grid, one row per class.")
@click.option("--npz", type=click.Path(path_type=Path), help="Write images (uint8) and labels.")
@click.option("--class", "classes", multiple=True, help="Only this class; may be given again.")
@click.option(
    "--prompt", "prompts", multiple=True, help="For a text-to-image pipeline; may be given again."
)
@click.option(
    "--guidance", type=float, default=4.5, show_default=True, help="Of prompts, in many steps."
)
@click.option(
    "--per-class",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Images of each class or prompt.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="1: one-step generator; more: DDIM.  [default: 1 for an erased model, 50 for a teacher]",
)
@click.option("--t-init", type=int, help="Start of the one-step generator.  [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@machine_options
def sample(
    model: Path,
    png: Path | None,
    npz: Path | None,
    classes: tuple[str, ...],
    prompts: tuple[str, ...],
    guidance: float,
    per_class: int,
    steps: int | None,
    t_init: int | None,
    seed: int,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Draw images from MODEL: a model folder or a pipeline, original or erased."""
    if png is None and npz is None:
        raise PeckerError("sample: nowhere to write to; give --png FILE, --npz FILE or both")
    targets = [output_file(path, force) for path in (png, npz) if path is not None]
    if (model / "model_index.json").is_file():
        if classes or npz is not None or not prompts:
            raise PeckerError(
                f"sample: {model} is a text-to-image pipeline; give it --prompt TEXT and --png FILE"
            )
        _sample_prompts(
            model, targets[0], prompts, guidance, per_class, steps, t_init, seed, device, threads
        )
        click.echo(targets[0])
        return
    if prompts:
        raise PeckerError(f"sample: {model} is a class model; --prompt is for pipelines")

    import numpy as np
    import torch

    from pecker_fast.evaluate.grid import plot_grid
    from pecker_fast.evaluate.sampling import Sampler
    from pecker_fast.files import replacing
    from pecker_fast.models import ModelFolder

    place = prepare(device, threads)
    folder = ModelFolder.load(model)
    folder.unet.to(place)
    chosen = [folder.class_index(name) for name in classes] or list(range(folder.num_classes))
    if steps is None:
        steps = 1 if folder.kind == "generator" else TEACHER_STEPS
    labels = torch.tensor(chosen).repeat(per_class)
    sampler = Sampler(steps=steps, seed=seed, t_init=t_init)
    images = sampler.sample(folder, labels, progress="sampling")
    if png is not None:
        title = f"{model.name or model}: {sampler.describe()}, seed {seed}"
        gone = folder.figures.get("forget")  # an erased model says what it forgot
        plot_grid(
            png,
            images,
            labels,
            folder.class_names,
            title,
            forget=None if gone is None else folder.class_index(gone),
            columns=min(per_class, MOST_COLUMNS),
        )
    if npz is not None:
        pixels = ((images + 1) * 127.5).round().to(torch.uint8).numpy()
        with replacing(npz) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                images=pixels,
                labels=labels.numpy(),
                class_names=np.array(folder.class_names),
            )
    for path in targets:
        click.echo(path)


def _sample_prompts(
    path: Path,
    png: Path,
    prompts: tuple[str, ...],
    guidance: float,
    each: int,
    steps: int | None,
    t_init: int | None,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """A grid of images of a pipeline, one row per prompt."""
    import torch

    from pecker_fast.evaluate.grid import plot_grid
    from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
    from pecker_fast.models.pipeline import PipelineFolder

    place = prepare(device, threads)
    pipeline = PipelineFolder.load(path)
    unet = pipeline.unet.to(place).eval()
    if steps is None:
        steps = 1 if pipeline.description.get("kind") == "generator" else TEACHER_STEPS
    sampler = PipelineSampler(pipeline, place)
    labels = torch.arange(len(prompts)).repeat_interleave(each)
    texts = [prompts[i] for i in labels]
    if steps == 1:
        latents = sampler.one_step(unet, texts, seed, t_init, progress="sampling")
        how = "one step"
    else:
        latents = sampler.many_steps(unet, texts, seed, steps, guidance, progress="sampling")
        how = f"{steps} steps, guidance {guidance:g}"
    images = sampler.images(latents) * 2 - 1
    title = f"{path.name or path}: {how}, seed {seed}"
    plot_grid(png, images, labels, prompts, title, columns=min(each, MOST_COLUMNS))
