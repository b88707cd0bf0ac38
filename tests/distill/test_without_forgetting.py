"""Distillation that forgets nothing: stage 1 of two, every class kept and no forget half."""

import pytest
import torch
from toys import toy_objective, train, weights

from pecker_fast.distill import load_config
from pecker_fast.errors import PeckerError
from pecker_fast.runs.randomness import TRAINING, IterationRandom

NOTHING = {
    "forget": None,
    "generator.lambda_forget": 0,
    "pseudo_score.lambda_forget": 0,
    "mask.kind": "full",
}


def test_every_class_is_drawn_and_no_half_to_forget():
    objective = toy_objective(NOTHING)
    labels = objective.conditions.draw(200, IterationRandom(0, 0, objective.device, TRAINING))
    assert len(labels) == 200
    assert labels.student.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(labels.student, labels.teacher)


def test_it_is_the_remain_term_alone():
    """Against a run whose forget half has weight 0, on the same labels and noise."""
    nothing, trace = train(toy_objective({**NOTHING, "iterations": 2}, dropout=0.0))
    assert [m.losses and sorted(m.losses) for m in trace][-1] == [
        "generator/remain",
        "pseudo_score/remain",
    ]

    forgetting = toy_objective({**NOTHING, "forget": 0, "iterations": 2}, dropout=0.0)
    draw = forgetting.conditions.draw
    plain = toy_objective(NOTHING, dropout=0.0)

    def labels(batch_size, random):
        remain = plain.conditions.draw(batch_size, random)
        rest = draw(batch_size, IterationRandom(9, 9, random.device, TRAINING))[batch_size:]
        parts = zip(remain.tensors(), rest.tensors(), strict=True)
        return remain.with_tensors([torch.cat(pair) for pair in parts])

    def numbers(random, count):
        remain = plain.draw(random, count // 2)
        return remain.map(lambda part: torch.cat([part, part]))

    forgetting.conditions.draw, forgetting.draw = labels, numbers
    with_zeros, _ = train(forgetting)
    for name, value in weights(nothing.generator).items():
        torch.testing.assert_close(value, weights(with_zeros.generator)[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(
        weights(nothing.generator)["conv_in.weight"], nothing.start.conv_in.weight
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator.lambda_forget": 0.01}, "generator.lambda_forget and .* must be 0"),
        ({"pseudo_score.lambda_forget": 0.01}, "must be 0"),
        ({"mask.kind": "saliency"}, "no saliency to find"),
    ],
)
def test_what_needs_a_class_to_forget_is_refused(settings, message):
    with pytest.raises(PeckerError, match=message):
        load_config(None, {**NOTHING, **settings})
