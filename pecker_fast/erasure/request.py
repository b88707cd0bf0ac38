"""What is asked of an erasure, and which of it fits together.

Light to import: what does not fit is said before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    from pecker_fast.datasets.loading import ImageSet
    from pecker_fast.distill.config import PeckerConfig
    from pecker_fast.distributed import Ranks
    from pecker_fast.erasure.run import Tracker
    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.methods.config import BaselineConfig
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["HUB_OPTIONS", "Request"]

HUB_OPTIONS = ("revision", "variant", "token", "local_files_only")
"""Fields that say what to take of a model on the hub."""

_TRAINS = ("erase", "distill")  # commands whose `out` is the directory of a run


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for. The fields are the options of `pecker-fast erase`; see its help.

    Attributes:
        out: the run directory, or the file of a mask.
        model: what a class is to be erased from: a folder, a run that made one, an id of the hub,
            or in memory.
        pipeline: what concepts are to be erased from, in place of `model`, likewise.
        pipeline_config: where `pipeline` is a checkpoint in one file: the folder of a pipeline of
            its kind, for what the file does not say.
        base_model: id on the hub of what is erased from, for the model card. None: as `model` or
            `pipeline` says.
        revision: of a model on the hub: branch, tag or commit.
        variant: of the weights, such as "fp16", of folders too.
        token: for the hub. None: as huggingface_hub finds it.
        local_files_only: take of the hub what was downloaded before.
        config: a YAML file or the name of a shipped recipe. None: the defaults.
        settings: dotted keys that are laid over it, e.g. `{"mask.density": 0.1}`.
        forget: the class, by name or index, or several. None: the configuration's.
        overrides: the class in its place, of several the last; where several are to be forgotten
            one for all or one for each, and with `pipeline` one for each of `names`.
        names: the concepts, for a recipe that leaves them open.
        dataset: real images to train on. None: the configuration's.
        data_root: the folder that holds them.
        download: fetch them if they are not there.
        mask: instead of one that is found; a file or in memory.
        generator: where the one-step generator starts: a model folder, with `pipeline` a pipeline
            or a U-Net, or an earlier run. None: the original.
        pseudo_score: where the pseudo-score network starts, likewise.
        first_stage: where both start: a run of `pecker-fast distill` on the same model.
        classifier: the judge, which gives a report.
        second_classifier: another judge.
        statistics: of real images in its features, or those images as .npz. None: what lies
            beside the classifier.
        curve_per_class: images of each class behind each point of the curve. None: 177 in all.
        per_class: images of each class in the evaluation.
        teacher_steps: DDIM steps of a many-step model in the evaluation.
        previews: whether a pipeline's images are shown, and a report made of them.
        neighbours: prompts near to the concept that are shown as well.
        nudity_detector: an ONNX file that judges these images.
        clip: a folder that does likewise.
        prompts: a CSV file to judge a pipeline's erasure by, see `read_prompt_file`; one of
            `classifier`, `clip`, `nudity_detector` and `faces` tells what images of them show.
        faces: a recogniser, trusted:MODULE:OBJECT.
        keep_steps: the model goes on drawing in many steps, by the recipe keep_steps unless
            `config` is another such; with `pipeline` it may be any about prompts, which are taken.
        force: delete the run that `out` holds instead of taking it up.
        device: where to work: auto, cpu, cuda, cuda:N.
        started: `time.monotonic()` at the start of the command, for the seconds of the report.
            None: now.
        trackers: what is told losses, judged points and figures: whatever has `log(values, step=)`,
            as a run of wandb and accelerate's trackers.
        command: who asks, for messages.

    Raises:
        PeckerError: fields that exclude or need each other.
    """

    out: Path
    model: Path | ModelFolder | None = None
    pipeline: Path | PipelineFolder | None = None
    pipeline_config: Path | None = None
    base_model: str | None = None
    revision: str | None = None
    variant: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    config: str | Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    forget: str | int | Sequence[str | int] | None = None
    overrides: Sequence[str | int] = ()
    names: Sequence[str] = ()
    dataset: str | None = None
    data_root: Path | None = None
    download: bool = False
    mask: Path | SaliencyMask | None = None
    generator: Path | None = None
    pseudo_score: Path | None = None
    first_stage: Path | None = None
    classifier: Path | None = None
    second_classifier: Path | None = None
    statistics: Path | None = None
    curve_per_class: int | None = None
    per_class: int = 200
    teacher_steps: int = 50
    previews: bool = True
    neighbours: Sequence[str] = ()
    nudity_detector: Path | None = None
    clip: Path | None = None
    prompts: Path | None = None
    faces: str | None = None
    keep_steps: bool = False
    force: bool = False
    device: str | torch.device = "auto"
    started: float | None = None
    trackers: Sequence[Tracker] = ()
    command: str = "erase"

    def __post_init__(self) -> None:
        if (self.model is None) == (self.pipeline is None):
            raise self._error(
                "give a model folder MODEL to forget a class, or --pipeline FOLDER to forget a "
                "concept, one of the two"
            )
        if self.pipeline_config is not None and not (
            isinstance(self.pipeline, Path) and self.pipeline.is_file()
        ):
            raise self._error(
                "--pipeline-config is for a checkpoint in one file; expected --pipeline "
                f"FILE.safetensors, got {self.pipeline}"
            )
        if self.pipeline is None:
            self._check_class()
        else:
            self._check_concept()
        for tracker in self.trackers:
            if not callable(getattr(tracker, "log", None)):
                raise self._error(
                    f"trackers: a {type(tracker).__name__} has no log(values, step=...), which "
                    "runs of wandb and trackers of accelerate have"
                )
        if self.keep_steps and self.config is None:
            object.__setattr__(self, "config", "keep_steps")
        if self.command in _TRAINS:
            self._check_out()

    @property
    def values(self) -> dict[str, Any]:
        """What is laid over the configuration of a class: `settings` and the two classes."""
        values = dict(self.settings)
        gone = self._forgotten
        if gone:
            values["forget"] = gone[0] if len(gone) == 1 else gone
        if self.overrides:
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

        name = "model" if self.pipeline is None else "pipeline"
        source = getattr(self, name)
        if not isinstance(source, Path):
            return self
        folder = local_folder(source, **{option: getattr(self, option) for option in HUB_OPTIONS})
        found: dict[str, Any] = {name: folder, "revision": None}
        return replace(self, **found)

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

        prompts = self.pipeline is not None
        values = dict(self.settings) if prompts else self.values
        # Named concepts are filled into the configuration; classes are values of it.
        named: dict[str, Any] = {
            "names": self.names, "name_overrides": [str(each) for each in self.overrides]
        } if prompts else {}  # fmt: skip
        config: PeckerConfig | BaselineConfig
        if names_a_baseline(self.config, None if prompts else values):
            self._check_no_start()
            config = load_baseline_config(self.config, values, **named)
        elif self.keep_steps and prompts:
            self._check_no_start()
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
        if not isinstance(config, BaselineConfig) or config.data_free:
            self._check_data_free()
        return config

    def read_images(self, ranks: Ranks, split: str) -> ImageSet:
        """The real images that are asked for, on every process; only the first may download.

        Raises:
            PeckerError: see `load_images`.
        """
        from pecker_fast.datasets.loading import read_images

        assert self.dataset is not None
        return read_images(ranks, self.dataset, self.data_root, split, self.download)

    def _check_class(self) -> None:
        if self.names:
            raise self._error("--name needs --pipeline; for a class use --forget")
        only_concepts = {
            "--neighbour": self.neighbours or None,
            "--nudity-detector": self.nudity_detector,
            "--clip": self.clip,
            "--prompts": self.prompts,
            "--faces": self.faces,
        }
        if unfit := [name for name, value in only_concepts.items() if value is not None]:
            raise self._error(f"{unfit[0]} is about the images of prompts and needs --pipeline")
        named = self.config is not None or "method" in self.settings
        if len(self._forgotten) > 1 and len(self.overrides) not in (0, 1, len(self._forgotten)):
            raise self._error(
                f"{len(self._forgotten)} classes to --forget and {len(self.overrides)} times "
                "--override; give it once for all of them, or once for each in the same order"
            )
        if not named and not (self._forgotten and self.overrides):
            raise self._error("give --forget and --override, or a --config that has them")
        needing = {
            "--statistics": self.statistics,
            "second_classifier": self.second_classifier,
        }
        for option, value in needing.items():
            if value is not None and self.classifier is None:
                raise self._error(f"{option} needs --classifier, which judges the same images")

    def _check_concept(self) -> None:
        self._check_data_free()
        only_classes = {
            "--forget": self._forgotten or None,
            "--statistics": self.statistics,
            "a second --classifier": self.second_classifier,
        }
        if unfit := [name for name, value in only_classes.items() if value is not None]:
            raise self._error(f"{unfit[0]} is for class models; with --pipeline use --name")
        if self.prompts is None and (self.classifier, self.faces) != (None, None):
            name = "--faces" if self.classifier is None else "--classifier"
            raise self._error(f"{name} judges images of a pipeline's --prompts FILE; give it too")
        judges = (self.classifier, self.clip, self.nudity_detector, self.faces)
        if self.prompts is not None and sum(each is not None for each in judges) != 1:
            raise self._error(
                "--prompts takes one judge: --classifier, --clip, --nudity-detector or --faces"
            )
        if self.config is None:
            raise self._error("--pipeline needs --recipe, e.g. celebrity, object or nudity")
        if not self.previews and (self.nudity_detector or self.clip or self.prompts):
            raise self._error("--no-previews leaves nothing to judge; leave it out")

    def _check_no_start(self) -> None:
        if (self.generator, self.pseudo_score, self.first_stage) != (None, None, None):
            raise self._error(
                "--from, --generator and --pseudo-score are for distillations; this method starts "
                f"from {'MODEL' if self.pipeline is None else 'the pipeline'}"
            )

    def _check_out(self) -> None:
        out = self.out.resolve()
        for read in (
            self.model,
            self.pipeline,
            self.generator,
            self.pseudo_score,
            self.first_stage,
        ):
            if not isinstance(read, Path):
                continue
            source = read.resolve()
            if source in (out, out / MODEL_NAME, out / PIPELINE_NAME):
                raise self._error(f"--out {self.out} would replace {read}; choose another --out")
            made = {source / MODEL_NAME, source / PIPELINE_NAME} if holds_run(source) else {source}
            if made & set(out.parents):
                raise self._error(f"--out {self.out} lies in {read}; choose a folder outside of it")

    def _check_data_free(self) -> None:
        given = {
            "--dataset": self.dataset,
            "--data-root": self.data_root,
            "--download": self.download or None,
        }
        if found := [name for name, value in given.items() if value is not None]:
            raise self._error(
                f"{found[0]} is for methods that are trained on real images, such as "
                "--config cifar10_salun; this one needs none: leave it out"
            )

    def _error(self, message: str) -> PeckerError:
        return PeckerError(f"{self.command}: {message}")
