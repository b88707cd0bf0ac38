"""Recipes against the published constants; what is refused; which of two kinds a file is."""

import pytest

from pecker_fast.distill.config import load_config, recipe_names
from pecker_fast.errors import PeckerError
from pecker_fast.methods.config import (
    BaselineConfig,
    baseline_names,
    load_baseline_config,
    names_a_baseline,
)

TEXT = {"remain": ["a"], "concepts": [{"prompts": ["{concept}"], "concept": "b", "override": "c"}]}
KINDS = ("salun", "neggrad", "finetune", "esd")


def test_the_cifar10_recipe_is_the_published_one():
    """DDPM/configs/cifar10_saliency_unlearn.yml and the command line of SalUn's README."""
    config = load_baseline_config("cifar10_salun")
    assert (config.method, config.dataset, config.split) == ("random_label", "cifar10", "train")
    assert (config.iterations, config.batch_size, config.label_dropout) == (1000, 128, 0.1)
    assert (config.lambda_forget, config.lambda_remain) == (1.0, 1e-3)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.eps) == (
        1e-4,
        0.9,
        0.999,
        1e-8,
    )
    assert (optimizer.weight_decay, optimizer.clip_value, optimizer.clip_grad_norm) == (0, None, 1)
    mask, saliency = config.mask, config.saliency
    assert (mask.kind, mask.density, mask.scope, mask.granularity) == (
        "saliency", 0.5, "global", "element",
    )  # fmt: skip
    assert (saliency.batch_size, saliency.guidance, saliency.clip_grad_norm) == (128, 2.0, 1.0)
    assert saliency.reduction == "abs_of_sum"
    assert config.ema.decay is None and config.flip


def test_there_is_one_recipe_for_each_method_and_data_set():
    names = [f"{data}_{kind}" for data in ("cifar10", "stl10") for kind in KINDS]
    kept = [f"demo{data}_keep_steps" for data in ("", "_emoji")]
    assert baseline_names() == sorted([*names, *kept, "keep_steps"])
    assert not set(names) & set(recipe_names())
    methods = [load_baseline_config(f"cifar10_{kind}").method for kind in KINDS]
    assert methods == ["random_label", "negative_gradient", "fine_tune", "esd"]
    for kind in KINDS:
        cifar, stl = (
            load_baseline_config(f"{data}_{kind}").flat() for data in ("cifar10", "stl10")
        )
        differing = {key for key in cifar if cifar[key] != stl[key]}
        assert differing - {"saliency.batch_size"} == {"dataset", "split", "batch_size"}
        assert (stl["dataset"], stl["split"], stl["batch_size"]) == ("stl10", "all", 64)


def test_only_salun_has_a_mask_of_its_own():
    kinds = {kind: load_baseline_config(f"cifar10_{kind}").mask.kind for kind in KINDS}
    assert kinds == {"salun": "saliency", "neggrad": "full", "finetune": "full", "esd": "full"}


def test_a_file_comes_back(tmp_path):
    config = load_baseline_config("stl10_esd", {"forget": "cat", "optimizer.lr": 3e-5})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_baseline_config(tmp_path / "config.yaml") == config


def test_which_kind_a_configuration_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("method: esd\n")
    (tmp_path / "other.yaml").write_text("alpha: 1.0\n")
    assert names_a_baseline("cifar10_salun") and names_a_baseline(tmp_path / "mine.yaml")
    assert names_a_baseline(None, {"method": "esd"})
    assert not names_a_baseline("cifar10_forget") and not names_a_baseline(None)
    assert not names_a_baseline(tmp_path / "other.yaml", {"alpha": 1.2})
    with pytest.raises(PeckerError, match=r"shipped recipes are .*cifar10_esd.*cifar10_forget"):
        names_a_baseline("cifar10_sa1un")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "salun"}, "method must be 'random_label', .* got 'salun'"),
        ({"alpha": 1}, "unknown configuration key 'alpha'; did you mean"),
        ({"method": "esd", "override": 1}, "method esd puts no class in the place"),
        ({"forget": 2, "override": 2}, "forget and override are the same class 2"),
        ({"lambda_forget": 0}, "random_label with lambda_forget 0 forgets nothing"),
        ({"method": "fine_tune", "lambda_remain": 0}, "fine_tune needs lambda_remain > 0"),
        ({"optimizer.release_grads": True}, "clip_grad_norm is the norm over all entries"),
        ({"mask.density": 0}, r"mask\.density must be greater than 0"),
        ({"method": "redirect", "dataset": "cifar10"}, "dataset: method redirect draws"),
        ({"method": "redirect", "flip": False}, "flip: method redirect draws"),
        ({"saliency.reduction": "retain_aware"}, r"saliency\.reduction retain_aware is for method"),
        ({"until": {"steps": 1}}, r"until\.steps must be greater than or equal to 2"),
        ({"text": TEXT}, "method random_label is for class models"),
        ({"method": "redirect", "text": {**TEXT, "concepts": []}}, "text.concepts"),
        ({"method": "redirect", "text": TEXT, "forget": 2}, "forget: is about classes"),
        ({"method": "redirect", "text": TEXT, "label_dropout": 0}, "label_dropout"),
        ({"method": "redirect", "text": "keep_steps"}, "'keep_steps' is about classes"),
        ({"method": "redirect", "text": "demo_concpet"}, "demo_concpet"),
        ({"dataset": "mnist"}, "dataset must be 'cifar10', 'stl10', .* got 'mnist'"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(PeckerError, match=message):
        load_baseline_config(None, changes)


def test_the_prompts_of_any_recipe():
    named = {"names": ["a cat"], "name_overrides": ["a dog"]}
    ours = load_baseline_config("keep_steps", {"text": "object", "text.dropout": 0.3}, **named)
    theirs = load_config("object", {"text.dropout": 0.3}, **named)
    assert ours.text == theirs.text and ours.text.concepts[0].concept == "a cat"
    assert ours.changed({"text": None}) == load_baseline_config("keep_steps")
    demo = load_baseline_config("demo_emoji_keep_steps")
    assert demo.text == load_config("demo_emoji_object").text and demo.method == "redirect"


def test_defaults_are_the_salun_recipe():
    named = {"dataset": "cifar10", "logging": load_baseline_config("cifar10_salun").logging}
    assert BaselineConfig().model_copy(update=named) == load_baseline_config("cifar10_salun")
