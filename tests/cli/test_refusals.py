"""What a command refuses before anything is written: exit code 2, one line that names the thing.

Command lines that need no torch: REFUSED in test_cli.py. Spoiled files: tests/bad_input.
"""

import pytest
import torch

from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder

# Words in capitals are options or paths of `words`; behind the bar is what the line names.
TABLE = """
erase MODEL STAR --density 1.01 | mask.density
erase MODEL STAR --mask-file OTHER_MASK | conv_in.weight
erase MODEL STAR --data-root . | --data-root
erase MODEL STAR --device cuda:99 | --device cuda:99
erase MODEL STAR --device meta | --device meta
erase MODEL STAR --set batchsize=1 --print-config | batchsize, batch_size
erase MODEL STAR --config cifar10_stage2 | first_stage, --from
erase MODEL STAR --set saliency.kind=retain_aware | retain_aware, --from
erase MODEL STAR --set until={} | until, --classifier
erase MODEL STAR --generator COLOURED | COLOURED, architecture
erase MODEL STAR --pseudo-score ONE_STEP | ONE_STEP, no pseudo-score network
erase MODEL STAR STAR --override circle | 3 times --override
erase MODEL STAR --statistics . | --statistics, --classifier
erase MODEL STAR --clip . | --clip, --pipeline
erase MODEL --config demo_emoji_object | demo_emoji_object, --pipeline
erase ONE_STEP STAR | ONE_STEP, --generator
mask ONE_STEP STAR | ONE_STEP, --generator
mask MODEL STAR --data-root . | mask, --data-root
mask MODEL STAR --out m.PNG | m.PNG, m.safetensors
erase MODEL --keep-steps --forget star | --override
erase MODEL --keep-steps --config keep_steps | --override
erase MODEL --keep-steps --config second_stage | --keep-steps
erase MODEL --keep-steps STAR --dataset images | --dataset
erase MODEL --keep-steps STAR --from BEGUN | --from
erase MODEL --keep-steps STAR --set until={} | --classifier
erase MODEL --keep-steps STAR --set alpha=1 | 'alpha'
erase COLOURED --keep-steps STAR JUDGED --teacher-steps 1 | --teacher-steps
erase COLOURED --config cifar10_salun --forget star --set dataset=null | --dataset
erase COLOURED --config cifar10_salun --forget star --dataset cifar10 | --data-root
erase COLOURED --config cifar10_salun DATA --forget star --generator BEGUN | --generator
erase COLOURED --config cifar10_salun DATA --forget star --override star | 'star'
erase COLOURED --config cifar10_salun DATA --forget star --override 2 | 'star'
erase COLOURED --config cifar10_salun DATA --forget star --override random | 'random'
erase COLOURED --config cifar10_salun DATA --forget star --set alpha=1 | 'alpha'
erase COLOURED --config cifar10_salun DATA --forget star --forget circle | one class
erase MODEL --config cifar10_salun DATA --forget star | (3 8 8), (1 8 8)
erase PIPELINE CAT --set until={} | until, --prompts
erase PIPELINE CAT JUDGED | --classifier, --prompts
erase PIPELINE CAT --prompts . | one judge
erase PIPELINE CAT --forget cat | --forget, --name
erase PIPELINE CAT --generator BEGUN | BEGUN, not made
erase PIPELINE CAT --clip . | --prompts
erase PIPELINE CAT --no-previews --prompts . --clip . | --no-previews
erase PIPELINE CAT --push erased | --push
erase PIPELINE CAT --push a/b/c | --push
erase PIPELINE --keep-steps | --recipe
erase PIPELINE --keep-steps --recipe object | --name
erase PIPELINE --keep-steps --recipe second_stage | second_stage, classes
erase PIPELINE --keep-steps --recipe keep_steps | keep_steps, classes
erase PIPELINE --keep-steps CAT --from BEGUN | --from
erase PIPELINE --keep-steps CAT --set until={} | until, judge
erase PIPELINE --keep-steps CAT --set alpha=1 | 'alpha'
erase PIPELINE --keep-steps CAT --set forget=1 | forget
erase PIPELINE --keep-steps CAT --set method=esd | esd
erase PIPELINE --keep-steps CAT --teacher-steps 1 | --teacher-steps
erase PIPELINE --keep-steps CAT --set steps=2000 | steps 2000
sample BEGUN | BEGUN, has not made a model yet
evaluate MODEL --clip . | --clip, --prompts
evaluate PIPELINE | --pipeline, --prompts
evaluate MODEL --forget star JUDGED JUDGED JUDGED | --classifier
evaluate MODEL --forget star JUDGED --data-root . | --data-root, --dataset
train-teacher --config TEACHER DATA --without hexagon | 'hexagon', 'square'
"""
NO_OUT = ("evaluate", "m.PNG")


@pytest.fixture(scope="module")
def words(files, coloured, pipeline, tmp_path_factory):
    """What the words in capitals stand for."""
    root = tmp_path_factory.mktemp("refused")
    model = ModelFolder.load(files.model)
    model.with_network(model.network, "generator").save(root / "one_step")
    SaliencyMask.full(torch.nn.Linear(3, 4)).save(root / "other.safetensors")
    (root / "begun").mkdir()
    (root / "begun" / "run.lock").touch()
    return {
        "MODEL": files.model, "COLOURED": coloured.model, "ONE_STEP": root / "one_step",
        "BEGUN": root / "begun", "OTHER_MASK": root / "other.safetensors",
        "TEACHER": "small_teacher", "PIPELINE": f"--pipeline {pipeline}",
        "STAR": "--forget star --override circle",
        "CAT": "--recipe object --name cat --override dog",
        "JUDGED": f"--classifier {coloured.classifier}", "DATA": " ".join(map(str, coloured.data)),
    }  # fmt: skip


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_it_is_refused_in_one_line(run, refused, words, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    command, named = (
        [str(words.get(word, word)) for word in part.replace(", ", " , ").split(" ")]
        for part in line.split(" | ")
    )
    asked = " ".join(command).split()
    out = [] if any(word in line for word in NO_OUT) else ["--out", "run"]
    done = run(*asked, *out)
    said = " ".join(named).replace("(3 8 8)", "(3, 8, 8)").replace("(1 8 8)", "(1, 8, 8)")
    refused(done, *said.split(" , "))
    assert list(tmp_path.iterdir()) == []
