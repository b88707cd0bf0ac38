"""docs/loops: transformers' Trainer, TRL's trainers, new tokens of a language model."""

import pytest
from loop_pages import assert_same, check, copied, run, saved_mask
from processes import run_processes
from sharded_loops import learn_new_tokens
from tiny_language import examples, loss_of, sentences, tiny_llama, tokenizer

from pecker_fast.distributed import Ranks

pytestmark = pytest.mark.slow


@pytest.fixture
def _extra():
    pytest.importorskip("trl", reason="pip install 'pecker-fast[loops]'")


def test_trainer(_extra):
    model = tiny_llama()
    before, loss = copied(model), loss_of(model)
    mask = saved_mask(model)
    run("trainer", {"model": model, "texts": examples(sentences(64))}, 0, 1)
    check(before, copied(model), mask)
    assert loss_of(model) < loss - 0.03
    again = run("trainer", {"model": tiny_llama(), "texts": examples(sentences(64))}, 0)
    options = {"max_grad_norm": 1.0, "gradient_accumulation_steps": 2}
    again["trainer"](**options).train(resume_from_checkpoint="run/checkpoint-4")
    assert_same(copied(again["model"]), copied(model))


def test_trl(_extra):
    from datasets import Dataset

    model = tiny_llama()
    before, loss = copied(model), loss_of(model)
    mask = saved_mask(model)
    names = {
        "model": model,
        "texts": Dataset.from_dict({"text": sentences(64)}),
        "prompts": Dataset.from_dict({"prompt": sentences(16)}),
        "tokenizer": tokenizer(),
        "device": "cpu",
    }
    run("trl", names, 0)
    tuned = copied(model)
    check(before, tuned, mask)
    assert loss_of(model) < loss - 0.03
    run("trl", names, 1)
    check(tuned, copied(model), mask)
    again = tiny_llama()
    ours = names["MaskedAdamW"], {"lr": 3e-3, "mask": mask.bound(again)}
    common = {"train_dataset": names["texts"], "processing_class": names["tokenizer"]}
    trainer = names["SFTTrainer"](again, names["tuning"], **common, optimizer_cls_and_kwargs=ours)
    trainer.train(resume_from_checkpoint="sft/checkpoint-4")
    assert_same(copied(again), tuned)


@pytest.mark.parametrize("sharded", [False, True])
def test_new_tokens(sharded):
    """Under weight decay and autocast; tied embeddings where they are not sharded."""
    if sharded:
        outcomes = run_processes(learn_new_tokens, 2, True)
    else:
        outcomes = [learn_new_tokens(Ranks(), False)]
    tables = {"model.embed_tokens.weight"} | ({"lm_head.weight"} if sharded else set())
    for outcome in outcomes:
        moved = {name for name, rows in outcome["moved"].items() if rows}
        assert moved == tables
        assert all(outcome["moved"][name] == [17, 18] for name in tables)
        assert outcome["losses"][-1] < outcome["losses"][0] - 0.1
