"""What is asked of an erasure: arguments of Python and options of commands, said once.

Light to import: what does not fit is said before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import (
    MODEL_NAME,
    PIPELINE_NAME,
    check_run_directory,
    find_model,
    holds_run,
    is_hub_id,
)

if TYPE_CHECKING:
    import torch

    from pecker_fast.distill.config import PeckerConfig
    from pecker_fast.erasure.erased import Tracker
    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.methods.config import BaselineConfig
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["HUB_OPTIONS", "Input", "Judges", "Request", "Source", "flag_of", "option"]

Input: TypeAlias = Path
"""A path that must be there."""
Source: TypeAlias = Path
"""The same, or the id of a model on the Hugging Face hub."""

HUB_OPTIONS = ("revision", "variant", "token", "local_files_only")
"""Fields that say what to take of a model on the hub."""

_TRAINS = ("erase", "distill")  # commands whose `out` is the directory of a run


def option(
    help: str,
    default: Any = None,
    *,
    flag: str | None = None,
    least: int | None = None,
    only: str | None = None,
) -> Any:
    """A field that is an option; its type is the first one of the annotation.

    Args:
        help: what `--help` says.
        default: where it is not given.
        flag: its name on the command line. None: made of the field's.
        least: the smallest number that it takes.
        only: for "class" or for "prompts"; None for both.
    """
    said = {"help": help, "flag": flag, "least": least, "only": only}
    return field(default=default, metadata=said)


def flag_of(each: Field[Any]) -> str:
    """The name of a field on the command line."""
    return each.metadata.get("flag") or f"--{each.name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who tells what an image shows: one of them."""

    classifier: Input | None = None
    clip: Input | None = option("CLIP folder, which tells labels apart.", only="prompts")
    nudity_detector: Input | None = option("ONNX file in NudeNet's format.", only="prompts")
    nudity_channel_order: str | None = None  # "rgb", or "bgr" for NudeNet's own counts
    faces: str | None = option("Recogniser of faces, trusted:MODULE:OBJECT.", only="prompts")

    @property
    def count(self) -> int:
        """How many are given."""
        given = (self.classifier, self.clip, self.nudity_detector, self.faces)
        return sum(each is not None for each in given)

    def require_one(self, prompts: Path | None) -> None:
        """Refuse none, several, and those of prompts where there are no prompts.

        Raises:
            PeckerError: one of these.
        """
        if self.nudity_detector is None and self.nudity_channel_order is not None:
            raise PeckerError("--nudity-channel-order needs --nudity-detector")
        if self.count != 1 or (prompts is None and self.classifier is None):
            raise PeckerError(
                "give one judge: --classifier, or with --prompts one of --classifier, --clip, "
                "--nudity-detector and --faces"
            )


@dataclass(frozen=True, kw_only=True)
class Request(Judges):
    """What is asked for.

    Raises:
        PeckerError: fields that exclude or need each other.
    """

    out: Path  # the run directory, or the file of a mask
    # A folder, a run that made one, an id of the hub, or in memory.
    model: Source | ModelFolder | None = None
    config: str | Path | None = option("YAML file or name of a shipped recipe.")
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys, laid over it
    # By name or index; None: the configuration's.
    forget: str | int | Sequence[str | int] | None = field(default=None, metadata={"only": "class"})
    overrides: Sequence[str | int] = ()  # one for all, or one for each of `forget` or `names`
    pipeline: Source | PipelineFolder | None = option(
        "Folder of a diffusers text-to-image pipeline, or its id owner/name on the hub, in place "
        "of MODEL."
    )
    pipeline_config: Input | None = option(
        "Folder of a pipeline of the same kind, where --pipeline is a checkpoint in one file."
    )
    base_model: str | None = None  # id on the hub, for the model card; None: as the model says
    revision: str | None = option("Of a model on the hub: branch, tag or commit.")
    variant: str | None = option("Of the weights, e.g. fp16, where a part has it.")
    token: str | bool | None = None  # for the hub; None: as huggingface_hub finds it
    local_files_only: bool = option(
        "Take of the hub only what was downloaded before.", False, flag="--offline"
    )
    names: Sequence[str] = option(
        "Concept to forget, for a recipe that leaves it open.", (), flag="--name", only="prompts"
    )
    generator: Input | None = option(
        "Where the one-step generator starts: a model folder, an earlier run, or with --pipeline "
        "the folder of a U-Net.  [default: the model itself]"
    )
    pseudo_score: Input | None = option(
        "Where the pseudo-score network starts, likewise: the second of two stages."
    )
    first_stage: Input | None = option(
        "Where both start: what `pecker-fast distill` has made of MODEL.", flag="--from"
    )
    keep_steps: bool = option(
        "The erased model draws in many steps, as the original does, instead of in one. With "
        "--pipeline any recipe says the prompts.",
        False,
    )
    dataset: str | None = None  # real images to train on; None: the configuration's
    data_root: Path | None = None
    download: bool = False
    mask: Input | SaliencyMask | None = option(
        "Use this mask instead of finding one.", flag="--mask-file"
    )
    second_classifier: Input | None = field(
        default=None, metadata={"only": "class", "flag": "a second --classifier"}
    )
    statistics: Input | None = option("Real images, see `evaluate`.", only="class")
    prompts: Input | None = option(
        "Judge the erasure of a pipeline by images of these, see `attack`; with one of "
        "--classifier, --clip, --nudity-detector and --faces.",
        only="prompts",
    )
    previews: bool = True  # whether a pipeline's images are shown, and a report made of them
    curve_per_class: int | None = option(
        "Images of each class behind each point of the curve.  [default: 177 in all]", least=2
    )
    per_class: int = option("Images of each class in the evaluation.", 200, least=2)
    teacher_steps: int = option(
        "DDIM steps of the original model in the evaluation, and of one that keeps its steps.",
        50,
        least=1,
    )
    force: bool = False  # delete the run that `out` holds
    device: str | torch.device = "auto"
    started: float | None = None  # `time.monotonic()` at the start of the command; None: now
    trackers: Sequence[Tracker] = ()
    command: str = "erase"  # for messages

    def __post_init__(self) -> None:
        if message := next(self._wrong(), None):
            raise self._error(message)
        if self.keep_steps and self.config is None:
            object.__setattr__(self, "config", "keep_steps")

    @property
    def of_prompts(self) -> bool:
        """Whether concepts of a pipeline are erased, and no class of a model."""
        return self.pipeline is not None

    @property
    def source(self) -> Path | ModelFolder | PipelineFolder:
        """What is erased from."""
        found = self.model if self.pipeline is None else self.pipeline
        assert found is not None  # checked
        return found

    @property
    def values(self) -> dict[str, Any]:
        """What is laid over the configuration: `settings`, and of a class the two classes."""
        values, gone = dict(self.settings), self._forgotten
        if gone:
            values["forget"] = gone[0] if len(gone) == 1 else gone
        if self.overrides and not self.of_prompts:
            several = len(gone) > 1 and len(self.overrides) > 1
            values["override"] = list(self.overrides) if several else self.overrides[-1]
        return values

    @property
    def _forgotten(self) -> list[str | int]:
        if self.forget is None:
            return []
        return [self.forget] if isinstance(self.forget, (str, int)) else list(self.forget)

    def check(self) -> None:
        """Say what is wrong with configuration and paths, as far as that needs no torch.

        Raises:
            PeckerError: see `read_config`; a run that has made no model yet, or an `out` that
                cannot be the directory of a run.
        """
        self.read_config()
        if isinstance(self.model, Path) and not is_hub_id(str(self.model)):
            find_model(self.model)
        if self.command in _TRAINS:
            check_run_directory(self.out)

    def fetched(self) -> Request:
        """The same, with the folder of a model that the hub has in place of its id.

        Raises:
            PeckerError: see `local_folder`.
        """
        from pecker_fast.models.hub import local_folder

        if not isinstance(self.source, Path):
            return self
        of_hub = {option: getattr(self, option) for option in HUB_OPTIONS}
        found: Any = {
            "pipeline" if self.of_prompts else "model": local_folder(self.source, **of_hub)
        }
        return replace(self, **found, revision=None)

    def read_config(self) -> PeckerConfig | BaselineConfig:
        """The configuration: of a distillation, or of a method that keeps the many steps.

        Raises:
            PeckerError: it cannot be read, has unknown keys or values out of range, is about
                classes where prompts are asked for, or needs no images where some are given.
        """
        from pecker_fast.distill.config import load_config
        from pecker_fast.methods.config import (
            BaselineConfig,
            load_baseline_config,
            names_a_baseline,
        )

        prompts, values = self.of_prompts, self.values
        # Named concepts are filled into the configuration; classes are values of it.
        named: dict[str, Any] = {
            "names": self.names, "name_overrides": [str(each) for each in self.overrides]
        } if prompts else {}  # fmt: skip
        is_baseline = names_a_baseline(self.config, None if prompts else values)
        starts = (self.generator, self.pseudo_score, self.first_stage)
        if (is_baseline or (self.keep_steps and prompts)) and starts != (None, None, None):
            raise self._error(
                "--from, --generator and --pseudo-score are for distillations; this method starts "
                f"from {'the pipeline' if prompts else 'MODEL'}"
            )
        config: PeckerConfig | BaselineConfig
        if is_baseline:
            config = load_baseline_config(self.config, values, **named)
        elif self.keep_steps and prompts:
            values = {"text": str(self.config), **values}
            config = load_baseline_config("keep_steps", values, **named)
        elif self.keep_steps:
            raise self._error(
                f"--keep-steps: {self.config} distils into one step; leave one of the two out, or "
                "give a configuration with `method`, such as keep_steps"
            )
        else:
            config = load_config(self.config, values, **named)
        if prompts and config.text is None:
            raise self._error(f"{self.config} is about classes; --pipeline needs one about text")
        if not prompts and config.text is not None:
            raise self._error(f"{self.config} is about prompts; give --pipeline in place of MODEL")
        if isinstance(config, BaselineConfig) and self.teacher_steps == 1:
            raise self._error(
                f"method {config.method} gives a many-step model: --teacher-steps must be at least "
                "2, as its images are drawn"
            )
        if self._images and (not isinstance(config, BaselineConfig) or config.data_free):
            raise self._error(self._no_images)
        return config

    @property
    def _images(self) -> str | None:
        """The first option that names real images."""
        given = ("dataset", "data_root", "download")
        return next((f"--{name.replace('_', '-')}" for name in given if getattr(self, name)), None)

    @property
    def _no_images(self) -> str:
        return (
            f"{self._images} is for methods that are trained on real images, such as "
            "--config cifar10_salun; this one needs none: leave it out"
        )

    def _wrong(self) -> Iterator[str]:
        """What does not go together."""
        if (self.model is None) == (self.pipeline is None):
            yield (
                "give a model folder MODEL to forget a class, or --pipeline FOLDER to forget a "
                "concept, one of the two"
            )
        one_file = isinstance(self.pipeline, Path) and self.pipeline.is_file()
        if self.pipeline_config is not None and not one_file:
            yield (
                "--pipeline-config is for a checkpoint in one file; expected --pipeline "
                f"FILE.safetensors, got {self.pipeline}"
            )
        kind = "prompts" if self.of_prompts else "class"
        for each in fields(self):
            only = each.metadata.get("only") or kind
            if only != kind and getattr(self, each.name) not in (None, ()):
                yield (
                    f"{flag_of(each)} is for class models; with --pipeline use --name"
                    if self.of_prompts
                    else f"{flag_of(each)} is about prompts and needs --pipeline; of a class use "
                    "--forget"
                )
        yield from self._wrong_of_prompts() if self.of_prompts else self._wrong_of_classes()
        for tracker in self.trackers:
            if not callable(getattr(tracker, "log", None)):
                yield (
                    f"trackers: a {type(tracker).__name__} has no log(values, step=...), which "
                    "runs of wandb and trackers of accelerate have"
                )
        if self.command in _TRAINS:
            yield from self._overwritten()

    def _wrong_of_classes(self) -> Iterator[str]:
        gone, instead = len(self._forgotten), len(self.overrides)
        if gone > 1 and instead not in (0, 1, gone):
            yield (
                f"{gone} classes to --forget and {instead} times --override; give it once for all "
                "of them, or once for each in the same order"
            )
        if self.config is None and "method" not in self.settings and not (gone and instead):
            yield "give --forget and --override, or a --config that has them"
        if (self.statistics, self.second_classifier) != (None, None) and self.classifier is None:
            yield "--statistics and a second judge need --classifier, which judges the same images"

    def _wrong_of_prompts(self) -> Iterator[str]:
        if self._images:
            yield self._no_images
        if self.prompts is None and self.count:
            yield "a judge, --classifier or another, needs --prompts FILE: it judges their images"
        if self.prompts is not None and self.count != 1:
            yield "--prompts takes one judge: --classifier, --clip, --nudity-detector or --faces"
        if self.config is None:
            yield "--pipeline needs --recipe, e.g. celebrity, object or nudity"
        if not self.previews and self.prompts:
            yield "--no-previews leaves nothing to judge; leave it out"

    def _overwritten(self) -> Iterator[str]:
        """Whether what is made would replace, or lie in, what is read."""
        out = self.out.resolve()
        for read in (self.source, self.generator, self.pseudo_score, self.first_stage):
            if not isinstance(read, Path):
                continue
            source = read.resolve()
            if source in (out, out / MODEL_NAME, out / PIPELINE_NAME):
                yield f"--out {self.out} would replace {read}; choose another --out"
            made = {source / MODEL_NAME, source / PIPELINE_NAME} if holds_run(source) else {source}
            if made & set(out.parents):
                yield f"--out {self.out} lies in {read}; choose a folder outside of it"

    def _error(self, message: str) -> PeckerError:
        return PeckerError(f"{self.command}: {message}")
