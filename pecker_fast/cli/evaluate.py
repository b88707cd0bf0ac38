"""`pecker-fast evaluate`, `attack` and `compare`: what was forgotten, and what was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli import shared
from pecker_fast.cli.common import echo, judges, prepare, result
from pecker_fast.cli.shared import INPUT, PATH, command, flag, option
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import JUDGED_PER_CLASS
from pecker_fast.files import check_output_file, write_text

__all__ = ["attack", "compare", "evaluate"]


@command(
    click.argument("model", type=INPUT, required=False),
    option("--images", "Judge these instead of a model: a folder, or an .npz.", INPUT),
    option("--prompts", "Judge images of these prompts, group by group.", INPUT),
    option("--pipeline", "The pipeline that draws them, or its run.", INPUT),
    shared.prompt_judges,
    option("--per-prompt", "Images of each row.  [default: 1]", least=1),
    option("--batch-size", "Prompts drawn at a time.", least=1),
    option(
        "--classifier classifiers", "The judge; given again, a second one.", INPUT, multiple=True
    ),
    option(
        "--statistics", "Of real images.  [default: those in the folder of the classifier]", INPUT
    ),
    option(
        "--forget", "The forgotten class: name or index.  [default: what an erased model says]"
    ),
    option("--override", "The class in its place: name or index."),
    option("--real", "Real images: a folder, or an .npz.", INPUT),
    shared.data,
    option("--inception", "File of the Inception weights, for FID.", PATH),
    option("--per-class", f"Images each.  [default: {JUDGED_PER_CLASS}]", least=2),
    shared.sampler,
    option(
        "--guidance", "Classifier-free, in many steps.  [default: 0; of prompts the row's own, "
        "else 7.5]", float,
    ),
    option("--seed", "Seed of the noise.  [default: 0]", int),
    option(
        "--samples", "Folder that keeps the images; an evaluation that was stopped goes on with "
        "them.", PATH,
    ),
    option("--json json_path", "Write the figures; - for stdout.", PATH),
    flag("--force", "Replace a file that exists, or other --samples."),
    shared.machine,
    shared.quiet,
    examples="""
    pecker-fast evaluate demo-run/model --classifier clf --forget "Ankle boot" --override Sneaker
    pecker-fast evaluate MODEL --classifier clf --statistics real.npz --forget 3 --json out.json
    pecker-fast evaluate RUN --classifier clf --per-class 5000 --dataset cifar10 --data-root DATA
        --inception INCEPTION.pth --samples RUN/samples --json RUN/evaluate.json
    pecker-fast evaluate --images FOLDER --real real.npz --inception INCEPTION.pth --forget 0
    pecker-fast evaluate --pipeline RUN --prompts prompts.csv --samples RUN/samples --clip CLIP
    pecker-fast evaluate --pipeline RUN --prompts i2p.csv --samples RUN/i2p
        --nudity-detector 320n.onnx --nudity-channel-order bgr --json RUN/i2p.json

The classifier is a folder that train-classifier wrote, or SA's, SalUn's or SFD's own file
(cifar10_resnet34.pth); no code in it is run. --statistics adds the Fréchet distance in its
features: a file of ClassStatistics.save, or an .npz with real images (N, C, H, W), uint8, and
labels. Real images (--real or --dataset) add FID, KID, inception score, precision and recall of the
kept classes. The Inception weights are a file that you give; nothing is downloaded.

--prompts judges images of prompts, group by group: a CSV file with a column prompt and, where there
are such, group (forget, override, neighbours, keep), label, seed and guidance; I2P's file as it is;
or a text file with a caption a line, such as COCO's. --pipeline draws them into --samples, or
--images has one for each row.
""",
)  # fmt: skip
def evaluate(
    json_path: Path | None, force: bool, device: str, threads: int | None, **options: Any
) -> None:
    """Judge a model, or images, by a classifier and by FID."""
    on_stdout = json_path == Path("-")
    if json_path is not None and not on_stdout:
        check_output_file(json_path, force)
    of_prompts = options["prompts"] is not None
    for name in _CLASSES if of_prompts else _PROMPTS:
        if options.pop(name) not in (None, False, ()):
            shown = {"model": "MODEL", "method": "--sampler", "classifiers": "--classifier"}.get(
                name, f"--{name.replace('_', '-')}"
            )
            raise PeckerError(
                f"evaluate: {shown} judges images of classes; leave it out, or --prompts"
                if of_prompts
                else f"evaluate: {shown} is about images of prompts; it needs --prompts FILE"
            )

    from pecker_fast.distributed import Ranks
    from pecker_fast.evaluate import judge, judge_prompts

    place = prepare(device, threads)
    work: Callable[..., Any] = judge_prompts if of_prompts else judge
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
_PROMPTS = (
    "prompts", "pipeline", "nudity_detector", "nudity_channel_order", "clip", "faces",
    "per_prompt", "t_init", "batch_size",
)  # fmt: skip


@command(
    click.argument("run", type=INPUT),
    option("--classifier", "The judge.", INPUT),
    option("--prompts", "To ask a pipeline with.", INPUT),
    shared.prompt_judges,
    option("--forget", "The class, or the label of a concept.  [default: what the erased says]"),
    option("--original", "What it was before, which draws images to teach with.", INPUT),
    option(
        "--retrained", "What attack --json printed for a model trained without the class.  "
        "[default: for the shipped teacher's ankle boots, what ships]", INPUT,
    ),
    option("--images", "Of the class in each way.", default=200, least=10),
    option("--seed", "Seed of the noise.", int, default=0),
    shared.machine,
    shared.json,
    shared.quiet,
    examples="""
    pecker-fast attack RUN --classifier judge
    pecker-fast attack RUN --classifier judge --original MODEL
    pecker-fast attack RETRAINED --classifier judge --original MODEL --forget cat --json > cat.json
    pecker-fast attack RUN --classifier judge --original MODEL --retrained cat.json
    pecker-fast attack RUN --clip CLIP --prompts prompts.csv --original PIPELINE

Ways of asking: one step from several noise levels, DDIM with 4 to 50 steps, DDPM, guidance, and
conditions between the class and the others. With --original two attacks that train as well: the
embedding of the class alone, and every parameter. In a run the shares go to attack.json.

Prompts to ask a pipeline with are a CSV file as `evaluate --prompts` takes it: the group forget
names what was forgotten, neighbours and keep what was not, and label says what each names: a class
of the classifier, whatever CLIP is to tell apart, or a face. A nudity detector needs no labels.
""",
)  # fmt: skip
def attack(run: Path, device: str, threads: int | None, **options: Any) -> None:
    """Ask for what was erased in other ways, and teach it again."""
    place = prepare(device, threads)

    from pecker_fast.erasure.attack import attack

    found = attack(run, **options, device=place)
    rows = [found.columns, *found.rows()]
    width = max(len(way) for way, *_ in rows)
    shares = ["  ".join([f"{way:{width}}", *(f"{s:>22}" for s in more)]) for way, *more in rows]
    result([*filter(None, [found.headline, found.taught_sentence]), *shares], found.to_dict)


@command(
    click.argument("runs", metavar="RUN...", type=INPUT, nargs=-1, required=True),
    option(
        "--out", "Folder for comparison.html, comparison.csv and curves.csv; made if need be.",
        PATH, required=True,
    ),
    flag("--force", "Replace a comparison that is there."),
    examples="""
    pecker-fast compare RUN1 RUN2 --out comparison
    pecker-fast compare pecker sfd salun original.json --out comparison

A RUN is a folder that `erase --out` or `train-teacher --out` wrote, or a file of `evaluate --json`,
e.g. of the original model. Figures in RUN/evaluate.json count more than the run's own:
    pecker-fast evaluate RUN --classifier CLF --forget CLASS --json RUN/evaluate.json

Figures that rest on other judges, other numbers of images or other real images are marked.
""",
)  # fmt: skip
def compare(runs: tuple[Path, ...], out: Path, force: bool) -> None:
    """Put many runs in one table and one page of plots."""
    from pecker_fast.evaluate.comparison import FILES, Comparison, write_comparison

    if out.exists() and not out.is_dir():
        raise PeckerError(f"{out}: is a file; give --out the name of a folder")
    there = [name for name in FILES if (out / name).exists()]
    if there and not force:
        raise PeckerError(f"{out / there[0]}: exists; add --force to replace it")
    from pecker_fast.evaluate.comparison_reading import read_runs

    comparison = Comparison(read_runs(runs))
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(comparison, out)
    for title, letters in comparison.notes().items():
        listed = "; ".join(f"{letter}: {words}" for words, letter in letters.items())
        echo(f"note: {title}: not comparable where letters differ. {listed}.")
    for sentence in comparison.unfinished():
        echo(f"note: {sentence}")
    for name in FILES:
        echo(out / name)
