"""`pecker-fast erase`, `distill` and `mask`: what is asked of the user's own model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli import shared
from pecker_fast.cli.common import config_values, judges, prepare, result, say_config
from pecker_fast.cli.shared import INPUT, PATH, SOURCE, command, flag, option, options_of, together
from pecker_fast.cli.torchrun import is_first
from pecker_fast.erasure.request import HUB_OPTIONS, Request
from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_file, shown
from pecker_fast.progress import note
from pecker_fast.runs.finding import find_pipeline, is_hub_id, is_repository

if TYPE_CHECKING:
    from pecker_fast.erasure.erased import Erased
    from pecker_fast.masks.mask import ParameterStats

__all__ = ["distill", "erase", "mask", "say"]

_hub_options = options_of(Request, *HUB_OPTIONS)
_config_option = options_of(Request, "config")
_output_options = together(
    shared.run, shared.dry_run, shared.print_config, shared.json, shared.quiet
)


@command(
    click.argument("model", type=SOURCE, required=False),
    shared.out,
    shared.training,
    shared.data,
    shared.iterations,
    option("--recipe", "The same as --config, e.g. celebrity, nudity, object, style."),
    options_of(Request),
    flag("--no-previews", "No images of a pipeline, and no report."),
    option(
        "--classifier classifiers", "Judge, see `evaluate`; gives a report. Given again: a second "
        "one.", INPUT, multiple=True,
    ),
    option("--push", "Upload the erased model to the hub.", metavar="OWNER/NAME"),
    _output_options,
    examples="""
    pecker-fast erase MODEL --forget cat --override dog --out run --config cifar10_forget
    pecker-fast distill MODEL --out one-step
    pecker-fast erase MODEL --from one-step --forget cat --override dog --out run
    pecker-fast erase MODEL --keep-steps --forget cat --override dog --out run
    pecker-fast erase MODEL --forget cat --override dog --forget car --override ship --out run
    pecker-fast erase MODEL --config recipe.yaml --out run --classifier clf --statistics real.npz
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run
    pecker-fast erase MODEL --config cifar10_salun --forget cat --data-root DATA --out run
    pecker-fast erase --pipeline SD15 --recipe celebrity --name "..." --override "a man" --out run
    pecker-fast erase --pipeline SD15 --recipe nudity --prompts i2p.csv --nudity-detector 320n.onnx
        --out run
    pecker-fast erase --pipeline owner/name --variant fp16 --recipe nudity --out run
    pecker-fast erase --pipeline SD15 --keep-steps --recipe nudity --out run
    pecker-fast erase --pipeline SD15 --recipe nudity --out run --dry-run

The run directory receives checkpoints, mask.safetensors, config.yaml and, at the end, the erased
model as a folder `model`, or `pipeline` with patch.safetensors, and frozen.json: how many frozen
parameters changed, compared bit by bit; unless it is 0, the exit code is 3. With a judge also
report.html. The same command goes on with a run that was interrupted.

Methods to compare with, trained on the real images of --dataset: SalUn (--config cifar10_salun);
with --set method=negative_gradient, fine_tune or esd gradient ascent, fine-tuning and ESD.
Their result draws images in many steps, as the original does. --mask-file takes SalUn's own files.
""",
)  # fmt: skip
def erase(threads: int | None, dry_run: bool, print_config: bool, **options: Any) -> None:
    """Erase a class or a concept from your own model."""
    started, push = time.monotonic(), options.pop("push")
    if push is not None and not is_repository(push):
        raise PeckerError(f"--push {shown(push)}: is no id of the hub; expected owner/name")
    recipe, config = options.pop("recipe"), options.pop("config")
    if recipe is not None and config is not None:
        raise PeckerError("erase: --recipe and --config are the same option; give one of them")
    options |= judges(options.pop("classifiers"))
    options |= {
        "config": config if recipe is None else recipe,
        "previews": not options.pop("no_previews"),
    }
    values = config_values(options)
    request = Request(settings=values, started=started, **options)
    if (found := _carried_out(request, threads, dry_run, print_config)) is not None:
        say(found)
        if push is not None and is_first():
            note(f"pushed to {found.push_to_hub(push)}")


NOTHING_FORGOTTEN = {
    "mask.kind": "full",
    "generator.lambda_forget": 0.0,
    "pseudo_score.lambda_forget": 0.0,
    "first_stage": "none",
    "until": None,
}
"""What makes a first stage out of any recipe, besides that it names nothing to forget."""


@command(
    click.argument("model", type=SOURCE),
    _hub_options,
    shared.out,
    option("--config", "YAML file or name of a recipe.  [default: cifar10_stage1; of a pipeline "
           "text_stage1]"),
    shared.iterations,
    shared.seed,
    shared.settings("batch_size=16"),
    _output_options,
    examples="""
    pecker-fast distill MODEL --out one-step
    pecker-fast erase MODEL --from one-step --forget cat --override dog --out run
    pecker-fast distill SD15 --set text.remain=captions.txt --out one-step
    pecker-fast erase --pipeline SD15 --from one-step --recipe nudity --out run

--out receives checkpoints and, at the end, the one-step generator as a folder `model` (of a
pipeline `pipeline`) and the network that knows its scores as a folder `pseudo_score`. Stopped, it
goes on when the same command is started again. The default recipe is cifar10_stage1, 50,000
iterations of 128 images; of a pipeline text_stage1, 16,000 of 512.
""",
)  # fmt: skip
def distill(
    model: Path, threads: int | None, dry_run: bool, print_config: bool, **options: Any
) -> None:
    """Distil a model into one step, for erasures to start from."""
    started = time.monotonic()
    if is_hub_id(str(model)):  # whether it is a pipeline is seen in its files
        from pecker_fast.models.hub import local_folder

        of_hub = {name: options[name] for name in HUB_OPTIONS if name in options}
        model, options["revision"] = local_folder(model, **of_hub), None
    pipeline = find_pipeline(model)
    nothing: dict[str, Any] = {"forget": None} if pipeline is None else {"text.concepts": []}
    recipe = "cifar10_stage1" if pipeline is None else "text_stage1"
    if options["config"] is None:
        options["config"] = recipe
    request = Request(
        model=model if pipeline is None else None,
        pipeline=pipeline,
        settings={**config_values(options), **nothing, **NOTHING_FORGOTTEN},
        started=started,
        command="distill",
        **options,
    )
    if (erased := _carried_out(request, threads, dry_run, print_config)) is not None:
        facts = erased.facts
        result([f"first stage      {erased.out}"], lambda: {"out": erased.out, **facts.to_dict()})


def _carried_out(request: Request, threads: int | None, dry: bool, printing: bool) -> Erased | None:
    """Check and do what is asked for; None where only its settings, or what it takes, are said."""
    if printing:
        say_config(request.read_config())
        return None
    request.check()
    prepare(str(request.device), threads)

    from pecker_fast.erasure.api import dry_run, run

    if not dry:
        return run(request)
    found = dry_run(request)
    result(found.lines(), found.to_dict)
    return None


def say(erased: Erased) -> None:
    """Print what happened, what was frozen, the figures, and where everything is.

    Raises:
        FrozenChangedError: a frozen entry has changed.
    """
    paths = {erased.kind: erased.folder}
    if erased.report is not None:
        paths["report"] = erased.out / "report.html"
    if erased.patch is not None:
        paths["patch"] = erased.patch

    def content() -> dict[str, Any]:
        figures = (erased.facts if erased.report is None else erased.report).to_dict()
        return {"out": erased.out, "paths": paths, **figures}

    result(_lines(erased, paths), content)
    if is_first():
        erased.frozen.require_unchanged(erased.out)


def _lines(erased: Erased, paths: Mapping[str, Path]) -> Iterator[str]:
    from pecker_fast.erasure.concepts import patch_sizes

    report = erased.report
    if report is not None:
        yield from filter(None, (report.headline, report.kept_sentence))
    yield erased.frozen.sentence()
    if report is not None:
        for table in report.tables[:1]:
            rows = [[column.lower() for column in table.columns], *table.rows]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            yield ""
            for row in rows:
                cells = zip(row, widths, strict=True)
                yield "  ".join(f"{cell:{width}}" for cell, width in cells).rstrip()
            yield ""
    facts = erased.facts if report is None else report.run
    yield f"wall time        {facts.wall_s:.0f} s"
    if report is not None:
        yield f"report           {paths['report']}"
    yield f"erased {erased.kind:9} {paths[erased.kind]}"
    if "patch" in paths:
        patch, network = patch_sizes(erased.out, erased.model.architecture.denoiser)
        yield f"patch            {paths['patch']} ({patch / network:.1%} of the network's file)"


@command(
    click.argument("model", type=SOURCE),
    _hub_options,
    option(
        "--out", "Mask file; a PNG with the density per layer is written beside it.", PATH,
        default=Path("mask.safetensors"),
    ),
    _config_option,
    shared.training,
    shared.data,
    flag("--force", "Replace files that exist."),
    shared.machine,
    shared.print_config,
    shared.json,
    shared.quiet,
    examples="""
    pecker-fast mask MODEL --forget "Ankle boot" --override Sneaker --density 0.1
    pecker-fast mask MODEL --forget 3 --override 5 --set saliency.kind=denoise --out m.safetensors
    pecker-fast mask MODEL --config cifar10_salun --forget 3 --data-root DATA
    pecker-fast erase MODEL --mask-file m.safetensors --forget 3 --override 5 --out run
""",
)  # fmt: skip
def mask(out: Path, force: bool, threads: int | None, print_config: bool, **options: Any) -> None:
    """Find the parameters that matter for a class."""
    if out.suffix.lower() == ".png":
        name = out.with_suffix(".safetensors").name
        raise PeckerError(f"--out {out}: is what the picture of the mask is called; name it {name}")
    check_output_file(out, force)  # first: the root of the file system has no suffix
    check_output_file(out.with_suffix(".png"), force)
    values = config_values(options)
    request = Request(out=out, settings=values, command="mask", **options)
    if print_config:
        say_config(request.read_config())
        return
    request.check()
    prepare(str(request.device), threads)

    from pecker_fast.erasure.masks import mask_of_class

    found = mask_of_class(request)
    plot, mask = found.save(out), found.mask
    content = {
        "forget": found.forget, "kind": found.kind, "salient": mask.nnz, "parameters": mask.numel,
        "density": mask.density, "digest": mask.digest, "model": found.model, "mask": out,
        "picture": plot,
    }  # fmt: skip
    counts = f"{mask.nnz:,} of {mask.numel:,} parameters are salient for {found.forget!r}"
    lines = [
        f"{counts} (density {mask.density:.4g}, {found.kind})",
        *_density_table(mask.stats()),
        found.note,
        f"digest {mask.digest[:16]}, of the model {found.model[:16]}",
        out,
        plot,
    ]
    result(lines, lambda: content)


def _density_table(stats: Iterable[ParameterStats]) -> Iterator[str]:
    """Lines with entries, salient entries and density of each block of the network."""
    from pecker_fast.masks.stats import block_of

    blocks: dict[str, tuple[int, int]] = {}
    for row in stats:
        numel, nnz = blocks.get(block_of(row.name), (0, 0))
        blocks[block_of(row.name)] = (numel + row.numel, nnz + row.nnz)
    width = max(len(block) for block in blocks)
    yield f"{'block':{width}} {'parameters':>12} {'salient':>12} {'density':>8}"
    for block, (numel, nnz) in blocks.items():
        yield f"{block:{width}} {numel:>12,} {nnz:>12,} {nnz / numel:>8.4f}"
