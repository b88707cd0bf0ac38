"""The small language model of language.py: its texts, its losses, and the base of every run."""

from __future__ import annotations

import asyncio
import hashlib
import pydoc_data.topics
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "WIDTH", "base_model", "batches", "held_out", "loss_of", "make_model", "step",
    "train",
]  # fmt: skip

WIDTH, LAYERS, CONTEXT = 256, 3, 128  # a window is CONTEXT bytes
PRETRAINED = 400  # steps
WINDOWS = 32  # that a loss is the mean of
CACHE = Path(tempfile.gettempdir())  # of the base, so that going on need not train it again


@cache
def texts() -> dict[str, Tensor]:
    """Name -> (n,) uint8: prose and code, each with what is held out of it."""
    folder = Path(asyncio.__file__).parent
    whole = {
        "prose": "\n\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items())),
        "code": "\n\n".join(file.read_text("utf-8") for file in sorted(folder.glob("*.py"))),
    }
    found = {}
    for name, text in whole.items():
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        tenth = len(data) // 10
        parts = (f"{name} to learn", f"{name} to choose by", f"{name} to judge by")
        found |= zip(parts, data.split([len(data) - 2 * tenth, tenth, tenth]), strict=True)
    return found


def batches(text: str, size: int, seed: int) -> Iterator[Tensor]:
    """(size, CONTEXT) int64, without end."""
    data, random = texts()[text], torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - CONTEXT, (size, 1), generator=random)
        yield data[starts + torch.arange(CONTEXT)].long()


def make_model(width: int) -> nn.Module:
    """A Llama with random weights, from one seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 16 * 16,
            num_hidden_layers=LAYERS,
            num_attention_heads=width // 32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        )
    )


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Nats a byte."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


@torch.no_grad()
def held_out(model: nn.Module, text: str) -> float:
    """The loss on windows at equal distances, the same for every model."""
    data = texts()[text]
    starts = torch.linspace(0, len(data) - CONTEXT, WINDOWS).long()[:, None]
    windows = data[starts + torch.arange(CONTEXT)].long()
    return sum(float(loss_of(model, part)) * len(part) for part in windows.split(16)) / WINDOWS


def step(model: nn.Module, optimizer: Optimizer, ids: Tensor) -> None:
    """One batch."""
    loss_of(model, ids).backward()
    optimizer.step()
    optimizer.zero_grad()


def train(
    model: nn.Module, optimizer: Optimizer, windows: Iterator[Tensor], lr: float, steps: int
) -> None:
    """At a rate that falls to zero."""
    for number, ids in zip(range(steps), windows, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - number / steps)
        step(model, optimizer, ids)


@cache
def base_weights() -> dict[str, Tensor]:
    """Of the model that has learned the prose; from a file where it has been made before."""
    made = (WIDTH, LAYERS, CONTEXT, PRETRAINED, torch.__version__)
    digest = hashlib.sha256(repr(made).encode() + texts()["prose to learn"].numpy().tobytes())
    file = CACHE / f"pecker_fast-language-{digest.hexdigest()[:16]}.safetensors"
    if not file.exists():
        model = make_model(WIDTH)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        train(model, optimizer, batches("prose to learn", 8, 0), 2e-3, PRETRAINED)
        save_file({name: p.detach() for name, p in model.named_parameters()}, file)
    return load_file(file)


def base_model() -> nn.Module:
    """A new one."""
    model = make_model(WIDTH)
    model.load_state_dict(base_weights(), strict=False)  # the head is the embedding
    return model
