"""`pecker-fast evaluate`: the figures of forgetting for a model folder or for images on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import (
    INPUT,
    PATH,
    data_options,
    echo,
    judges,
    machine_options,
    prepare,
    prompt_judge_options,
    sampler_options,
)
from pecker_fast.cli.output import quiet_option
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import JUDGED_PER_CLASS
from pecker_fast.files import check_output_file, write_text

__all__ = ["evaluate"]


@click.command(
    short_help="Judge a model, or images, by a classifier and by FID.",
    epilog="""\b
Examples:
    pecker-fast evaluate demo-run/model --classifier clf --forget "Ankle boot" --override Sneaker
    pecker-fast evaluate MODEL --classifier clf --statistics real.npz --forget 3 --json out.json
    pecker-fast evaluate RUN --classifier clf --per-class 5000 --dataset cifar10 --data-root DATA
        --inception INCEPTION.pth --samples RUN/samples --json RUN/evaluate.json
    pecker-fast evaluate --images FOLDER --real real.npz --inception INCEPTION.pth --forget 0
    pecker-fast evaluate --pipeline RUN --prompts prompts.csv --samples RUN/samples --clip CLIP
    pecker-fast evaluate --pipeline RUN --prompts i2p.csv --samples RUN/i2p
        --nudity-detector 320n.onnx --nudity-channel-order bgr --json RUN/i2p.json

\b
The classifier is a folder that train-classifier wrote, or the state dict of torchvision's resnet34
as the train_classifier.py of SA, SalUn and SFD saves it (cifar10_resnet34.pth); no code in them is
run. --statistics adds the Fréchet distance in the classifier's features: a file of
ClassStatistics.save, or an .npz with the real images (N, C, H, W), uint8, and their labels.

\b
Real images (--real or --dataset) add FID, KID, inception score, precision and recall of the kept
classes, by torch-fidelity. Its Inception weights are a file that you give; nothing is downloaded.
Drawn images are rounded to 8 bits a channel, as a PNG holds them, before anything judges them.

\b
--prompts judges images of prompts, group by group: a CSV file with a column prompt and, where there
are such, group (forget, override, neighbours, keep), label, seed and guidance; I2P's file as it is;
or a text file with a caption a line, such as COCO's. --pipeline draws them into --samples, or
--images has one for each row. --faces names a Python object whose code runs,
trusted:MODULE:OBJECT: images (N, 3, H, W) in [0, 1] -> for each the faces, for each face names and
probabilities.
""",
)
@click.argument("model", type=INPUT, required=False)
@click.option(
    "--images",
    type=INPUT,
    help="Judge these instead of a model: a folder, or an .npz.",
)
@click.option("--prompts", type=INPUT, help="Judge images of these prompts, group by group.")
@click.option("--pipeline", type=INPUT, help="The pipeline that draws them, or its run.")
@prompt_judge_options
@click.option("--per-prompt", type=click.IntRange(min=1), help="Images of each row.  [default: 1]")
@click.option("--negative", help="What guidance leads away from.  [default: the empty prompt]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Prompts drawn at a time.")
@click.option(
    "--classifier",
    "classifiers",
    type=INPUT,
    multiple=True,
    help="The judge; given again, a second one.",
)
@click.option(
    "--statistics",
    type=INPUT,
    help="Of real images.  [default: those in the folder of the classifier]",
)
@click.option(
    "--forget",
    help="The forgotten class: name or index.  [default: what an erased model says]",
)
@click.option("--override", help="The class in its place: name or index.")
@click.option("--real", type=INPUT, help="Real images: a folder, or an .npz.")
@data_options
@click.option("--inception", type=PATH, help="File of the Inception weights, for FID.")
@click.option(
    "--per-class",
    type=click.IntRange(min=2),
    help=f"Images each.  [default: {JUDGED_PER_CLASS}]",
)
@sampler_options
@click.option(
    "--guidance",
    type=float,
    help="Classifier-free, in many steps.  [default: 0; of prompts the row's own, else 7.5]",
)
@click.option("--seed", type=int, help="Seed of the noise.  [default: 0]")
@click.option(
    "--samples",
    type=PATH,
    help="Folder that keeps the images; an evaluation that was stopped goes on with them.",
)
@click.option("--json", "json_path", type=PATH, help="Write the figures; - for stdout.")
@click.option("--force", is_flag=True, help="Replace a file that exists, or other --samples.")
@machine_options
@quiet_option
def evaluate(
    json_path: Path | None, force: bool, device: str, threads: int | None, **options: Any
) -> None:
    """Judge images of MODEL, a model folder or a run, or of prompts, or images on disk."""
    on_stdout = json_path == Path("-")
    if json_path is not None and not on_stdout:
        check_output_file(json_path, force)
    is_of_prompts = options["prompts"] is not None
    options = _fitting(options, _CLASSES if is_of_prompts else _PROMPTS, is_of_prompts)

    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate import judge, judge_prompts

    place = prepare(device, threads)
    work: Callable[..., Any] = judge_prompts if is_of_prompts else judge
    options |= judges(options.pop("classifiers", ()))
    found = work(**options, force=force, device=place, ranks=Ranks.join(place.type))
    if found is None:
        return  # the first process judges what all have drawn
    content = json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    if on_stdout:
        click.echo(content)
        return
    for line in found.lines():
        echo(line)
    if json_path is not None:
        write_text(json_path, content + "\n")


_CLASSES = (
    "model", "classifiers", "statistics", "forget", "override", "dataset", "data_root", "download",
    "per_class", "method", "eta",
)  # fmt: skip
_SHOWN = {"model": "MODEL", "method": "--sampler", "classifiers": "--classifier"}
_PROMPTS = (
    "prompts", "pipeline", "nudity_detector", "nudity_threshold", "nudity_channel_order", "clip",
    "faces", "per_prompt", "negative", "t_init", "batch_size",
)  # fmt: skip


def _fitting(options: dict[str, Any], others: Sequence[str], of_prompts: bool) -> dict[str, Any]:
    """The options without those of the other kind of images, none of which may be given."""
    for name in others:
        value = options[name]
        if value is not None and value is not False and value != ():  # 0 is a value
            shown = _SHOWN.get(name, f"--{name.replace('_', '-')}")
            raise PeckerError(
                f"evaluate: {shown} judges images of classes; leave it out, or --prompts"
                if of_prompts
                else f"evaluate: {shown} is about images of prompts; it needs --prompts FILE"
            )
    return {name: value for name, value in options.items() if name not in others}
