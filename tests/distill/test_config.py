import contextlib

import pytest
import torch
import yaml

from pecker_fast.distill.config import RECIPES, PeckerConfig, load_config, recipe_names
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError


def test_defaults_are_the_published_cifar10_recipe():
    config = load_config()
    assert config.alpha == 1.2
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    time = NoiseSchedule.from_alphas_cumprod(alphas, **config.diffusion.model_dump())
    assert (time.t_init, time.t_min, time.t_max) == (440, 38, 712)
    for network in (config.generator, config.pseudo_score):
        assert (network.lr, network.lambda_remain, network.lambda_forget) == (1e-5, 1.0, 0.01)
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.0, 0.999, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_value) == (0.0, 1.0)
    assert (config.batch_size, config.iterations, config.ema.decay) == (128, 50_000, 0.9999)
    assert (config.forget, config.override) == (0, 1)
    mask, saliency = config.mask, config.saliency
    assert (mask.kind, mask.density, mask.apply, mask.scope) == (
        "saliency",
        0.5,
        "generator",
        "global",
    )
    assert (mask.granularity, mask.refresh_every) == ("element", 0)
    assert (saliency.kind, saliency.clip_grad_norm) == ("forget", 1.0)


def test_the_cifar10_file_says_what_the_defaults_say():
    found = load_config("cifar10_forget")
    assert found.diffusion.model_dump() == {"t_init": 440, "t_min": 38, "t_max": 712}
    ours = {"logging": found.logging, "diffusion": found.diffusion}
    assert found == load_config().model_copy(update=ours)


OPEN = ("celebrity", "object", "sfd_celebrity", "style")  # recipes that leave the concept open


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load(name):
    named = {"names": ["a"], "name_overrides": ["b"]} if name in OPEN else {}
    sections = ("text", "until")  # null unless a recipe has them
    keys = {key for key in load_config(name, **named).flat() if not key.startswith(sections)}
    assert keys == load_config().flat().keys() - set(sections)


def test_recipes_differ_where_the_published_table_does():
    stage1, stage2 = (load_config(name) for name in ("cifar10_stage1", "cifar10_stage2"))
    assert (stage1.forget, stage1.halves, stage2.halves) == (None, 1, 2)
    assert stage1.generator.lambda_forget == stage1.pseudo_score.lambda_forget == 0
    assert (stage1.mask.kind, stage2.mask.kind) == ("full", "full")
    masked = load_config("cifar10_stage2", {"mask.kind": "saliency", "mask.density": 0.5})
    assert (masked.mask.kind, masked.mask.density) == ("saliency", 0.5)
    assert masked.mask.apply == "generator"
    for recipe in (stage1, stage2):
        assert (recipe.generator.lr, recipe.pseudo_score.lr) == (1e-5, 3e-5)


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("generator: {lr: 1e-4}\nmask: {density: 0.1}\nforget: boot\n")
    config = load_config(file, {"mask.density": 0.2, "ema.decay": None, "seed": 3})
    assert config.generator.lr == 1e-4  # PyYAML reads 1e-4 as text
    assert (config.mask.density, config.ema.decay, config.seed) == (0.2, None, 3)
    assert config.forget == "boot"


def test_a_file_builds_on_a_recipe_or_on_a_file_beside_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: cifar10_stage2\ngenerator: {lr: 0.5}\n")
    (tmp_path / "last.yaml").write_text("base: mine.yaml\nmask: {kind: random}\n")
    expected = {"generator.lr": 0.5, "mask.kind": "random"}
    assert load_config(tmp_path / "last.yaml") == load_config("cifar10_stage2", expected)
    (tmp_path / "mine.yaml").write_text("base: last.yaml\n")
    with pytest.raises(PeckerError, match=r"last\.yaml builds on itself"):
        load_config(tmp_path / "last.yaml")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("mask.densty", "mask.density"),
        ("density", "mask.density"),
        ("lr", "generator.lr"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path, key, nearest):
    message = rf"unknown configuration key '{key}'; did you mean '{nearest}'\?"
    with pytest.raises(PeckerError, match=message):
        load_config(None, {key: 1})
    settings = 1
    for part in reversed(key.split(".")):
        settings = {part: settings}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(PeckerError, match=rf"{message} in .*run\.yaml"):
        load_config(file)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask.density": 0}, r"^mask\.density must be greater than 0, got 0$"),
        ({"mask.density": "half"}, r"^mask\.density must be a valid number.*got 'half'$"),
        ({"mask.kind": "best"}, r"^mask\.kind must be 'saliency', 'random' or 'full', got 'best'$"),
        ({"alpha": float("inf")}, r"^alpha must be a finite number"),
        ({"iterations": 2.5}, r"^iterations must be a valid integer"),
        ({"forget": [0.5]}, r"^forget.* must be a valid integer"),
        ({"mask": 3}, r"^mask must be a section with keys such as 'mask\.kind', got 3$"),
        ({"diffusion.t_min": 800, "diffusion.t_max": 712}, r"^t_min 800 must be below t_max 712$"),
        ({"forget": 1}, r"^forget and override are the same class 1: nothing"),
        ({"generator.lambda_forget": 0}, "needs generator.lambda_forget > 0"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(overrides, message):
    with pytest.raises(PeckerError, match=message) as caught:
        load_config(None, overrides)
    assert "\n" not in str(caught.value)


def _tenfold(n):
    """A line of YAML that stands for ten times what the line before stands for."""
    return f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 10)}]\n".encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"mask: {density: [", "not valid YAML"),
        (b"- 1\n- 2\n", "must hold 'key: value' lines, got a list"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x0: &x0 [0]\n" + b"".join(_tenfold(n) for n in range(9)), "more than 1,000,000 entries"),
        (b"a: &a [*a]", "nested deeper"),
        (b"a: &a {b: 1}\nc: {<<: *a}", "merge keys"),
        (b"a: " + b"[" * 1000, "nested deeper"),
        (b"seed: " + b"9" * 5000, "5000 digits"),
        (b"seed: 2020-99-99", "timestamp"),
        (b"seed: !!int x", "not valid YAML"),
        (b"base: 7", "base must be"),
        (b"base: ./run.yaml", "builds on itself"),
        (b"mask: [" + b"7, " * 10000 + b"7]", "must be a section .* got .7, 7, 7, 7, ...."),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(PeckerError, match=message) as caught:
        load_config(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_name_means_a_file_or_else_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"names": ["a"], "name_overrides": ["b"]}
    recipe = load_config(RECIPES / "style.yaml", **named)
    (tmp_path / "style").mkdir()  # a folder never counts
    assert load_config("style", **named) == recipe
    for missing in ("cifar11", tmp_path / "none.yaml", tmp_path / "runs" / "style"):
        with pytest.raises(PeckerError, match=r"no configuration file .*shipped .*object"):
            load_config(missing)
    with pytest.raises(PeckerError, match="style is a folder"):
        load_config(tmp_path / "style")
    (tmp_path / "style").rmdir()
    (tmp_path / "style").write_text("seed: 7\n")
    assert load_config("style").seed == 7
    (tmp_path / "style").write_text("# nothing\n")
    assert load_config("style") == PeckerConfig()
    config = load_config(None, {"ema.decay": None, "forget": "bag", "generator.lr": 3e-5})
    (tmp_path / "style").write_text(config.to_yaml())
    assert load_config("style") == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logging.every": 3}, None),
        ({"iterations": 99}, None),
        ({"seed": 1}, "run holds a run with seed 0, this one has 1"),
        ({"mask.density": 0.1}, "mask.density 0.5, this one has 0.1"),
        ({"iterations": 10}, "holds a run of 20 iterations, more than the 10"),
        ({"lr_schedule": "cosine"}, "lr_schedule 'constant', this one has 'cosine'"),
    ],
)
def test_settings_that_may_change_between_start_and_resume(change, named):
    start = load_config(None, {"iterations": 50}).flat()
    config = load_config(None, {"iterations": 50, **change})
    refused = contextlib.nullcontext() if named is None else pytest.raises(PeckerError, match=named)
    with refused:
        config.check_resumes(start, 20, "run")
    with pytest.raises(PeckerError, match="run holds a run with old_key 3"):  # another version's
        config.check_resumes({**config.flat(), "old_key": 3}, 0, "run")


def test_the_length_may_not_change_when_the_learning_rate_depends_on_it():
    start, longer = (load_config(None, {"iterations": n, "lr_schedule": "cosine"}) for n in (5, 6))
    with pytest.raises(PeckerError, match="iterations 5, this one has 6"):
        longer.check_resumes(start.flat(), 2, "run")


# ---- what a run needs beside its configuration


def test_a_second_stage_needs_the_first():
    second = load_config("cifar10_stage2")
    assert second.check_start(generator=True, pseudo_score=True) == []
    for given in ((True, False), (False, True)):
        with pytest.raises(PeckerError, match="give its run as --from"):
            second.check_start(*given)
    load_config("cifar10_stage1").check_start(False, False)
    one_step = load_config(None, {"first_stage": "generator"})
    assert one_step.check_start(generator=True, pseudo_score=False) == []
    with pytest.raises(PeckerError, match="--generator"):
        one_step.check_start(False, False)
    (note,) = load_config(None, {"first_stage": "advised"}).check_start(False, False)
    assert "--generator" in note
