"""Runs the published code of score forgetting distillation and writes published_figures.json.

    python tests/models/make_published_figures.py --reference FOLDER/DDPM

FOLDER is a checkout of github.com/tqch/score-forgetting-distillation at 3771028; einops must be
installed. It is that code's own training loop that runs, for one step, from a checkpoint of its
own format and with its own cifar10_sfd.yml, in float32. Put in its place are only what it reads
(labels, noise, time steps), its optimizers (`formula.Recorder`), the processes it expects, and

- dropout 0 and no clipping of gradients, so that these can be compared as they are;
- the width of the class embedding that its blocks assume, which only fits 128 channels.
"""

import argparse
import contextlib
import copy
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # for formula.py
import formula

FIGURES = Path(__file__).parent / "published_figures.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="its folder DDPM")
    folder = parser.parse_args().reference.resolve()
    sys.path.insert(0, str(folder))
    # Everything there has names like `models` and `runners`.
    from functions import dict2namespace
    from models import diffusion
    from runners import diffusion as runner

    settings = yaml.safe_load((folder / "configs" / "cifar10_sfd.yml").read_text())
    figures: dict[str, Any] = {"torch": torch.__version__, "networks": {}}
    for size, sizes in formula.SIZES.items():
        config = dict2namespace(settings)
        config.data.image_size = sizes["sample_size"]
        config.model.attn_resolutions = [sizes["sample_size"] // 2]
        config.model.ch = sizes["channels"]
        config.model.ch_mult = list(sizes["channel_mult"])
        config.model.num_res_blocks = sizes["blocks_per_level"]
        config.model.dropout = 0.0
        config.training.n_iters = 1
        config.sg_optim.grad_clip = config.g_optim.grad_clip = float("inf")
        diffusion.ResnetBlock.__init__.__kwdefaults__["cemb_channels"] = 4 * config.model.ch
        network = diffusion.Conditional_Model(config)
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        # The wide one is slow, and the differences between the runs are not in the network.
        runs = formula.RUNS if size == "narrow" else {"as published": {}}
        figures["networks"][size] = {
            "layout": formula.layout(shapes),
            "predictions": predictions(network, shapes, size),
            "runs": {
                name: train_once(runner, config, shapes, size, run) for name, run in runs.items()
            },
        }
    text = json.dumps(figures, indent=1)
    text = re.sub(r"\[[^][]*\]", lambda pair: " ".join(pair[0].split()), text)  # one line each
    FIGURES.write_text(text + "\n")
    print(f"wrote {FIGURES}")


def predictions(network: Any, shapes: Any, size: str) -> list[list[float]]:
    """What it predicts of four images, the last of no class."""
    network.load_state_dict(formula.weights("psi", shapes))
    no_class = torch.tensor([False, False, False, True])
    with torch.no_grad():
        noise = network.eval()(
            formula.noise("x", size, 4),
            torch.tensor([0.0, 38.0, 440.0, 999.0]),
            torch.tensor([0, 3, 9, 5]),
            mode="train",
            cond_drop_prob=0.0,
            cond_drop_mask=no_class,
        )
    return [formula.summary("prediction", image) for image in noise]


def train_once(runner: Any, config: Any, shapes: Any, size: str, run: Any) -> dict[str, Any]:
    """Losses and gradients of both networks in one step of `train_sfd`."""
    config = copy.deepcopy(config)
    distill = config.distill
    distill.alpha = run.get("alpha", distill.alpha)
    for network in ("sg", "g"):
        for term in ("remain", "forget"):
            given = run.get(f"lambda_{term}", getattr(distill, f"{network}_{term}_coef"))
            setattr(distill, f"{network}_{term}_coef", given)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(formula.checkpoint(shapes), file.name)
        args = SimpleNamespace(
            seed=0, label_to_forget=formula.FORGET, init_ckpt=file.name, init_ckpt_0=None
        )
        with in_its_world(runner, shapes, size) as (recorders, losses):
            runner.Diffusion(args, config).train_sfd()
    figures = {
        role: {
            "losses": [float(f"{loss:.8g}") for loss in losses[2 * i : 2 * i + 2]],
            "gradients": formula.layer_summaries(recorders[i].gradients),
        }
        for i, role in enumerate(("pseudo_score", "generator"))
    }
    if "alpha" in run:
        del figures["pseudo_score"]  # as published
    return figures


@contextlib.contextmanager
def in_its_world(runner: Any, shapes: Any, size: str) -> Iterator[tuple[list[Any], list[float]]]:
    """One process, noise and time steps by formula; yields the optimizers and losses it makes."""
    recorders: list[formula.Recorder] = []
    losses: list[float] = []
    ends = [formula.moved(shapes), formula.weights("ema", shapes)]

    def adam(params: Any, **options: Any) -> formula.Recorder:
        named = dict(zip(shapes, params, strict=True))
        recorders.append(formula.Recorder(named, ends[len(recorders)]))
        return recorders[-1]

    noises = (
        formula.noise(f"{role} {term} {kind}", size)
        for role, term in formula.TIMES
        for kind in ("n", "e")
    )
    times = iter(formula.TIMES.values())

    def randint(low: int, high: int, size: tuple[int, ...]) -> Tensor:
        drawn = torch.tensor(next(times))
        assert size == drawn.shape and low <= drawn.min() and drawn.max() < high
        return drawn

    labels = torch.tensor(formula.REMAIN)
    # Of the images nothing but their shape is used.
    batches = [(torch.zeros_like(formula.noise("", size)), labels)]
    processes = SimpleNamespace(
        init_process_group=lambda *args, **options: None,
        get_rank=lambda: 0,
        get_world_size=lambda: 1,
        barrier=lambda: None,
        is_initialized=lambda: False,
        all_reduce=lambda loss: losses.append(loss.item()),
    )
    alone = torch.nn.parallel.distributed
    with (
        contextlib.redirect_stdout(open(os.devnull, "w")),
        mock.patch.object(runner, "tdist", processes),
        mock.patch.object(runner, "get_forget_dataset", lambda *args, **options: (batches, None)),
        mock.patch.object(alone, "DistributedDataParallel", lambda network: network),
        mock.patch.object(torch.cuda, "set_device", lambda rank: None),
        mock.patch.object(torch.optim, "Adam", adam),
        mock.patch.object(torch, "randn_like", lambda x, **options: next(noises)),
        mock.patch.object(torch, "randint", randint),
    ):
        yield recorders, losses
    assert len(losses) == len(formula.TIMES) and next(times, None) is next(noises, None) is None


if __name__ == "__main__":
    main()
