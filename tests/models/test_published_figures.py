"""Losses and gradients as the published code makes them, from a checkpoint as it writes them."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import formula
import pytest
import torch
from torch import Tensor

from pecker_fast.cli import main
from pecker_fast.distill import Objective, load_config
from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.iteration import Iteration, IterationInputs
from pecker_fast.distill.network_set import NetworkSet
from pecker_fast.distill.objective import Draws
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.published import network_from
from pecker_fast.runs.learner import Learner

FIGURES = json.loads((Path(__file__).parent / "published_figures.json").read_text())["networks"]

RELATIVE = 1e-5
"""Two float32 programs that round 2^-24 in different places, through some forty layers and back."""


def shapes_of(size: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = DDPMUNet(**formula.SIZES[size])
    return {name: value.shape for name, value in network.state_dict().items()}


@pytest.mark.parametrize("size", formula.SIZES)
def test_names_and_shapes(size: str) -> None:
    assert formula.layout(shapes_of(size)) == FIGURES[size]["layout"]


def assert_close(found: Any, expected: Any, what: str) -> None:
    """A norm, and a product that is as large as the norm where there is no cancellation."""
    for value, figure in zip(found, expected, strict=True):
        assert abs(value - figure) <= RELATIVE * expected[0], (what, found, expected)


@pytest.mark.parametrize("size", formula.SIZES)
def test_predictions(size: str) -> None:
    network = network_from(
        formula.weights("psi", shapes_of(size)),
        "formula",
        sample_size=formula.SIZES[size]["sample_size"],
    )
    labels = torch.tensor([0, 3, 9, network.null_label])
    with torch.no_grad():
        noise = network(formula.noise("x", size, 4), torch.tensor([0, 38, 440, 999]), labels).sample
    for i, image in enumerate(noise):
        found = formula.summary("prediction", image)
        assert_close(found, FIGURES[size]["predictions"][i], f"image {i}")


@pytest.fixture(scope="module", params=formula.SIZES)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, ModelFolder]]:
    """A size, and the networks of a checkpoint, each through `pecker-fast convert`."""
    size = request.param
    if size == "cifar10" and os.environ.get("PECKER_FULL_SIZE") != "1":
        pytest.skip("the network of CIFAR-10 takes minutes: PECKER_FULL_SIZE=1")
    folder = tmp_path_factory.mktemp("published")
    torch.save(formula.checkpoint(shapes_of(size)), folder / "ckpt.pth")
    models = {}
    for slot in ("pseudo-score", "ema"):
        arguments = [folder / "ckpt.pth", "--out", folder / slot, "--slot", slot]
        arguments += ["--size", formula.SIZES[size]["sample_size"]]
        assert main(["convert", *map(str, arguments)]) == 0
        models[slot] = ModelFolder.load(folder / slot)
    return size, models


def one_iteration(
    size: str, models: Mapping[str, ModelFolder], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Losses of both terms and gradients of both networks, by role."""
    settings = {key: value for key, value in run.items() if not key.startswith("lambda")}
    for key in run.keys() - settings.keys():
        settings |= {f"generator.{key}": run[key], f"pseudo_score.{key}": run[key]}
    config = load_config("cifar10_forget", settings | {"batch_size": len(formula.REMAIN)})
    teacher, start = models["pseudo-score"], models["ema"].network
    objective = Objective.from_model(teacher, config)
    generator, psi = copy.deepcopy(start), copy.deepcopy(teacher.network)
    for network in (generator, psi):
        network.requires_grad_(True)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    shapes = {name: param.shape for name, param in psi.named_parameters()}
    ends = {psi: formula.moved(shapes), generator: dict(start.named_parameters())}

    def make(network: torch.nn.Module, *_: Any) -> formula.Recorder:
        return formula.Recorder(dict(network.named_parameters()), ends[network])

    learners = [Learner(network, None, 0.0, make) for network in (psi, generator)]
    networks = NetworkSet(teacher.network, generator, psi)
    losses = Iteration(objective, networks, *learners, ema=None).compute(inputs(size))
    return {
        role: {
            "losses": [half.mean().item() for half in loss.chunk(2)],
            "gradients": formula.layer_summaries(learner.optimizer.gradients),
        }
        for role, loss, learner in zip(("pseudo_score", "generator"), losses, learners, strict=True)
    }


def inputs(size: str) -> IterationInputs:
    """The remain half, then the forget half."""

    def both(role: str, kind: str) -> Tensor:
        terms = ("remain", "forget")
        return torch.cat([formula.noise(f"{role} {term} {kind}", size) for term in terms])

    forget, override = ([label] * 2 for label in (formula.FORGET, formula.OVERRIDE))
    remain = list(formula.REMAIN)
    labels = Conditions.everywhere(torch.tensor(remain + forget), torch.tensor(remain + override))
    draws = [
        Draws(
            both(role, "e"),
            torch.tensor([t for term in ("remain", "forget") for t in formula.TIMES[role, term]]),
            both(role, "n"),
        )
        for role in ("pseudo_score", "generator")
    ]
    return IterationInputs(labels, *draws)


@pytest.mark.parametrize("run", formula.RUNS)
def test_losses_and_gradients(run: str, published: tuple[str, dict[str, ModelFolder]]) -> None:
    size, models = published
    if run not in FIGURES[size]["runs"]:
        pytest.skip("the runs differ in the losses only, which the narrow network shows")
    found = one_iteration(size, models, formula.RUNS[run])
    for role, expected in FIGURES[size]["runs"][run].items():
        assert found[role]["losses"] == pytest.approx(expected["losses"], rel=RELATIVE), role
        gradients = found[role]["gradients"]
        assert gradients.keys() == expected["gradients"].keys()
        for layer, figures in expected["gradients"].items():
            assert_close(gradients[layer], figures, f"{role} {layer}")
