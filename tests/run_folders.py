"""Directories of runs as `compare` finds them, without a network in them."""

import json
from dataclasses import asdict, replace

import yaml

from pecker_fast.distill.config import load_config
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.judgement import Judgement
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.training_config import load_teacher_config

CLASSES = ("airplane", "automobile", "bird")

EVALUATION = Evaluation(
    forget=0, override=1, forget_count=500, forget_accuracy=0.01, forget_probability=0.0125,
    forget_entropy=0.2, override_accuracy=0.98, keep_count=1000, keep_accuracy=0.9,
    class_accuracy=(0.01, 0.9, None), frechet=4.25, frechet_all=6.0, frechet_real_count=10_000,
    sampler="one step", steps=1, seed=0, frechet_source="cifar10", judge="ResNet34 0123456789ab",
)  # fmt: skip

FIDELITY = FidelityFigures(
    fid=5.32, kid=0.00125, kid_std=0.0001, inception_score=9.5, inception_score_std=0.1,
    precision=0.659, recall=0.547, count=10_000, real_count=10_000, source="RUN/model",
    real_source="cifar10", layer="2048", kid_subsets=100, kid_subset_size=1000,
    inception_score_splits=10, neighbours=3, shuffle_seed=2020, weights="w.pth",
    weights_sha256="6726", weights_published=True, real_digest="feed" * 16,
)  # fmt: skip

MACHINE = {"device_name": "H100", "cores": 16}


def judgement(evaluation=EVALUATION, fidelity=FIDELITY, **changes):
    """What `evaluate --json` writes."""
    values = {
        "source": "RUN/model", "from_files": False, "class_names": CLASSES, "forget": 0,
        "drawn": {"sampler": "one-step"}, "network": "ab" * 32, "trained": {"kind": "generator"},
        "evaluation": evaluation, "fidelity": fidelity, "machine": MACHINE,
        "versions": {"torch": "2.13"},
    }  # fmt: skip
    return Judgement(**{**values, **changes})


def write_json(path, values):
    path.write_text(json.dumps(values))
    return path


def points(iterations, seconds, forget=(0.9, 0.3, 0.01), frechet=None):
    """A curve of as many points as `forget` has, evenly spaced."""
    last = len(forget) - 1
    return [
        CurvePoint(
            iteration=iterations * k // last, forget_accuracy=value, keep_accuracy=0.9,
            forget_count=60, keep_count=117, wall_s=seconds * k / last,
            frechet=None if frechet is None else frechet[k],
        )
        for k, value in enumerate(forget)
    ]  # fmt: skip


def write_run(
    folder,
    config,
    *,
    curve=(),
    report=True,
    evaluation=EVALUATION,
    seconds=120.0,
    figures=None,
    judged=None,
):
    """A directory with the files of a run; those that are None are left out."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    flat = yaml.safe_load(config.to_yaml())
    if figures is None:
        training = {"seconds": seconds, "machine": MACHINE, "processes": 1}
        figures = {"iterations": flat["iterations"], "mask_digest": "d1", "training": training}
    given = flat.get("without") if flat.get("forget") is None else flat["forget"]
    if given is not None:  # as the model's class is called
        figures = {**figures, "forget": {0: CLASSES[0]}.get(given) or given.lower()}
    write_json(folder / "model" / "pecker_fast.json", {"class_names": CLASSES, "figures": figures})
    if curve:
        write_json(folder / "curve.json", [asdict(point) for point in curve])
    if report:
        content = {
            "after": evaluation.to_dict(), "mask": flat["mask"]["kind"],
            "frozen_parameters": 90, "frozen_changed": 0, "salient_parameters": 10,
        }  # fmt: skip
        write_json(folder / "report.json", content)
    if judged is not None:
        write_json(folder / "evaluate.json", judged.to_dict())
    return folder


def pecker(**changes):
    return load_config(None, {"iterations": 1000, **changes})


def baseline(method, **changes):
    return BaselineConfig(method=method, iterations=1000, **changes)


def teacher(**changes):
    return load_teacher_config("cifar10_teacher", {"without": 0, **changes})


def worse(evaluation=EVALUATION, **changes):
    return replace(evaluation, **changes)
