"""docs/loops: transformers' Trainer, TRL's trainers, new tokens of a language model."""

import copy

import pytest
import torch
from language import batches, examples, loss_of, sentences, tiny_llama, tokenizer
from loop_pages import assert_same, check, copied, run, saved_mask
from processes import run_processes
from sharded_loops import learn_new_tokens

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def loops():
    """Packages of the extra `loops`."""
    pytest.importorskip("trl", reason="pip install 'pecker-fast[loops]'")


def test_trainer(loops):
    model = tiny_llama()
    before, loss = copied(model), loss_of(model)
    mask = saved_mask(model)
    run("trainer", {"model": model, "texts": examples(64)}, 0, 1)
    check(before, copied(model), mask)
    assert loss_of(model) < loss - 0.03
    again = run("trainer", {"model": tiny_llama(), "texts": examples(64)}, 0)
    options = {"max_grad_norm": 1.0, "gradient_accumulation_steps": 2}
    again["trainer"](**options).train(resume_from_checkpoint="run/checkpoint-4")
    assert_same(copied(again["model"]), copied(model))


def test_trl(loops):
    from datasets import Dataset

    def names(model):
        return {
            "model": model,
            "texts": Dataset.from_dict({"text": sentences(64)}),
            "prompts": Dataset.from_dict({"prompt": sentences(16)}),
            "tokenizer": tokenizer(),
        }

    model = tiny_llama()
    before, loss = copied(model), loss_of(model)
    mask = saved_mask(model)
    trained = run("trl", names(model), 0)
    tuned = copied(model)
    check(before, tuned, mask)
    assert loss_of(model) < loss - 0.03
    again = run("trl", names(tiny_llama()), 0)
    assert_same(copied(again["model"]), tuned)
    again = names(tiny_llama())
    run("trl", trained, 1)
    check(tuned, copied(model), mask)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens(tied):
    model, tokens = tiny_llama(tied), tokenizer()
    first_new = len(tokens)
    tokens.add_tokens(["zebra", "gnu"])
    names = {"model": model, "tokenizer": tokens, "first_new": first_new, "device": "cpu"}
    run("new-tokens", names, 0)
    before = copied(model)
    run("new-tokens", {**names, "data": batches(["the zebra sees the gnu"] * 4) * 10}, 1)
    check(before, copied(model), names["mask"])
    rows = model.lm_head.weight != before["model.embed_tokens.weight"]
    assert rows.any()
