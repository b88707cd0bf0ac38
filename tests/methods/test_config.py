"""The recipe and what methods set apart against the published constants; what is refused."""

import pytest

from pecker_fast.distill.config import load_config
from pecker_fast.errors import PeckerError
from pecker_fast.methods.config import BaselineConfig, load_baseline_config, names_a_baseline

TEXT = {"remain": ["a"], "concepts": [{"prompts": ["{concept}"], "concept": "b", "override": "c"}]}


def test_the_cifar10_recipe_is_the_published_one():
    """DDPM/configs/cifar10_saliency_unlearn.yml and the command line of SalUn's README."""
    config = load_baseline_config("cifar10_salun")
    expected = {
        "method": "random_label", "dataset": "cifar10", "iterations": 1000, "batch_size": 128,
        "label_dropout": 0.1, "lambda_forget": 1.0, "lambda_remain": 1e-3, "flip": True,
        "optimizer.lr": 1e-4, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999,
        "optimizer.eps": 1e-8, "optimizer.weight_decay": 0, "optimizer.clip_value": None,
        "optimizer.clip_grad_norm": 1.0, "mask.kind": "saliency", "mask.density": 0.5,
        "mask.scope": "global", "mask.granularity": "element", "saliency.batch_size": 128,
        "ema.decay": None,
    }  # fmt: skip
    assert config.flat().items() >= expected.items()
    named = {"dataset": "cifar10", "logging": config.logging}
    assert BaselineConfig().model_copy(update=named) == config


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("negative_gradient", {"lambda_remain": 1.0}),
        ("fine_tune", {"lambda_remain": 1.0}),
        ("esd", {"lambda_remain": 0.0, "label_dropout": 0.0, "eta": 7.5}),
    ],
)
def test_what_a_method_sets_apart(method, expected, tmp_path):
    salun = load_baseline_config("cifar10_salun").flat()
    config = load_baseline_config("cifar10_salun", {"method": method, "forget": "cat"})
    changed = {key: value for key, value in config.flat().items() if value != salun[key]}
    assert changed == {"method": method, "mask.kind": "full", "forget": "cat", **expected}
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_baseline_config(tmp_path / "config.yaml") == config
    said = {"method": method, "mask": {"density": 0.1}, "lambda_remain": 0.3, "label_dropout": 0.2}
    config = load_baseline_config(None, said)
    assert (config.lambda_remain, config.label_dropout) == (0.3, 0.2)
    assert (config.mask.density, config.mask.kind) == (0.1, "full")
    assert config.changed({"mask.kind": "saliency"}).mask.kind == "saliency"


def test_which_kind_a_configuration_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("method: esd\n")
    (tmp_path / "other.yaml").write_text("alpha: 1.0\n")
    assert names_a_baseline("cifar10_salun") and names_a_baseline(tmp_path / "mine.yaml")
    assert names_a_baseline(None, {"method": "esd"})
    assert not names_a_baseline("cifar10_forget") and not names_a_baseline(None)
    assert not names_a_baseline(tmp_path / "other.yaml", {"alpha": 1.2})
    with pytest.raises(PeckerError, match=r"cifar10_forget.*cifar10_salun"):
        names_a_baseline("cifar10_sa1un")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "salun"}, "method .*'salun'"),
        ({"alpha": 1}, "'alpha'"),
        ({"method": "esd", "override": 1}, "method esd .*override"),
        ({"forget": 2, "override": 2}, "forget and override"),
        ({"lambda_forget": 0}, "lambda_forget 0"),
        ({"method": "fine_tune", "lambda_remain": 0}, "lambda_remain"),
        ({"optimizer.release_grads": True}, "clip_grad_norm"),
        ({"mask.density": 0}, r"mask\.density"),
        ({"method": "redirect", "dataset": "cifar10"}, "dataset"),
        ({"method": "redirect", "flip": False}, "flip"),
        ({"saliency.reduction": "fisher_ratio"}, r"saliency\.reduction .*retain_aware"),
        ({"split": "all"}, "split .*STL-10"),
        ({"until": {"steps": 1}}, r"until\.steps"),
        ({"text": TEXT}, "method random_label .*text"),
        ({"method": "redirect", "text": {**TEXT, "concepts": []}}, "text.concepts"),
        ({"method": "redirect", "text": TEXT, "forget": 2}, "forget"),
        ({"method": "redirect", "text": TEXT, "label_dropout": 0}, "label_dropout"),
        ({"method": "redirect", "text": "keep_steps"}, "'keep_steps'"),
        ({"method": "redirect", "text": "demo_concpet"}, "demo_concpet"),
        ({"dataset": "mnist"}, "dataset .*'mnist'"),
    ],
)
def test_what_is_refused(changes, named):
    with pytest.raises(PeckerError, match=named):
        load_baseline_config(None, changes)


def test_the_prompts_of_any_recipe():
    named = {"names": ["a cat"], "name_overrides": ["a dog"]}
    ours = load_baseline_config("keep_steps", {"text": "object", "text.dropout": 0.3}, **named)
    theirs = load_config("object", {"text.dropout": 0.3}, **named)
    assert ours.text == theirs.text and ours.text.concepts[0].concept == "a cat"
    assert ours.changed({"text": None}) == load_baseline_config("keep_steps")
