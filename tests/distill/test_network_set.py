"""One set of weights for three networks: the same bits as three sets, in a third of the memory."""

import copy

import pytest
import torch
from toys import ToyDenoiser, assert_same_bits, toy_objective, train, weights

from pecker_fast.distill import PeckerTrainer
from pecker_fast.distill.network_set import SharedNetworks, alias
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask

BOTH = {"mask.apply": "both", "optimizer.weight_decay": 0.1, "pseudo_score.lambda_forget": 0.5}
OPTIONS = {
    "plain": {},
    "moments": {"optimizer.beta1": 0.9},
    "micro batches": {"micro_batch": 3},
    "released gradients": {"optimizer.release_grads": True},
    "another mask": {"mask.refresh_every": 2, "mask.density": 0.1},
    "whole tensors": {"mask.granularity": "tensor", "optimizer.clip_value": None},
    "bf16": {"precision": "bf16"},
    "no average": {"ema.decay": None},
    "recomputed": {"recompute": True},
    "every step": {"generator.every_step": 0.5, "micro_batch": 3},
    "no scores": {"generator.scores": False, "generator.one_step": 0.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_shared_weights_change_no_bit(options):
    """Three networks and one set of weights: losses, weights, averages, to the last bit."""
    runs = []
    for share in (False, True):
        settings = BOTH | options | {"mask.share_weights": share, "logging.every": 1}
        objective = toy_objective(settings)
        before = weights(objective.original)
        trainer, metrics = train(objective)
        assert isinstance(trainer._networks, SharedNetworks) == share
        assert_same_bits(weights(objective.original), before)
        runs.append(
            {
                "losses": [m.losses for m in metrics],
                "generator": weights(trainer.generator),
                "pseudo_score": weights(trainer.pseudo_score),
                "result": weights(trainer.ema_generator()),
                "frozen": vars(trainer.verify_frozen()),
            }
        )
    assert_same_bits(*runs)
    assert runs[0]["frozen"]["salient_changed"] > 0 == runs[0]["frozen"]["frozen_changed"]
    generator, pseudo_score = runs[0]["generator"], runs[0]["pseudo_score"]
    assert any(not torch.equal(generator[name], pseudo_score[name]) for name in generator)


def test_the_memory_is_that_of_one():
    objective = toy_objective(BOTH | {"iterations": 1})
    trainer, _ = train(objective)
    networks = [trainer._networks.use(role) for role in ("teacher", "pseudo_score", "generator")]
    addresses = [{p.data_ptr() for p in network.parameters()} for network in networks]
    assert addresses[0] == addresses[1] == addresses[2]
    assert len({id(p) for network in networks for p in network.parameters()}) == 3 * len(
        addresses[0]
    )


def test_a_graph_finds_its_weights_again():
    """A backward pass uses what its forward pass saw, although others ran in between."""
    torch.manual_seed(0)
    teacher = ToyDenoiser(dropout=0.0)
    mask = SaliencyMask.random(teacher, 0.5, seed=1)
    teacher.requires_grad_(False)
    networks = SharedNetworks(alias(teacher), mask)
    for role in ("generator", "pseudo_score"):
        with torch.no_grad():
            for name, param in networks.use(role).named_parameters():
                param.view(-1)[mask.indices[name].long()] += torch.randn(len(mask.indices[name]))
    apart = {}
    for role in ("teacher", "pseudo_score", "generator"):
        apart[role] = ToyDenoiser(dropout=0.0)
        apart[role].load_state_dict(networks.use(role).state_dict())
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    t, labels = torch.tensor([5, 90]), torch.tensor([0, 3])
    outputs = {role: networks.use(role)(x, t, labels) for role in apart}
    for role in reversed(apart):
        networks.use(role)
        (found,) = torch.autograd.grad(outputs[role].square().sum(), x)
        (expected,) = torch.autograd.grad(apart[role](x, t, labels).square().sum(), x)
        assert torch.equal(found, expected)
    # The test can fail: with another network's weights in place the gradient is another.
    output = networks.use("teacher")(x, t, labels)
    networks.use("generator")
    (found,) = torch.autograd.grad(output.square().sum(), x)
    assert not torch.equal(
        found, torch.autograd.grad(apart["teacher"](x, t, labels).square().sum(), x)[0]
    )


def test_an_iteration_puts_everything_back():
    """What a captured graph needs: the same vectors in the same roles after every iteration."""
    trainer = PeckerTrainer(toy_objective(BOTH))
    seen = []
    for _ in trainer.run():
        absent = trainer._networks._absent
        seen.append({r: [v.data_ptr() for v in absent[r].values()] for r in sorted(absent)})
    assert all(addresses == seen[0] for addresses in seen)
    assert sorted(seen[0]) == ["pseudo_score", "teacher"]


def test_values_of_another_mask_are_refused():
    teacher = ToyDenoiser()
    masks = [SaliencyMask.random(teacher, density, seed=0) for density in (0.2, 0.3)]
    state = SharedNetworks(alias(teacher), masks[0]).state_dict()
    with pytest.raises(PeckerError, match="values belong to another mask"):
        SharedNetworks(alias(teacher), masks[1]).load_state_dict(state)


def test_given_networks_keep_their_own_weights():
    starts = ToyDenoiser(), ToyDenoiser()
    trainer, _ = train(toy_objective(BOTH), generator=starts[0], pseudo_score=starts[1])
    assert trainer.generator is starts[0]
    assert trainer.pseudo_score is starts[1]


def test_a_generator_that_was_given_is_held_to_its_own_start():
    """Where one set of weights is shared, the start is the teacher; else what was handed in."""
    terms = {"generator.scores": False, "generator.one_step": 1.0}
    settings = {**terms, "generator.lr": 1e-2, "mask.kind": "full"}
    objective = toy_objective(settings)
    given = copy.deepcopy(objective.teacher).requires_grad_(True)
    with torch.no_grad():
        next(given.parameters()).add_(0.5)
    before = weights(given)
    trainer, _ = train(objective, generator=given)
    assert_same_bits(weights(trainer._networks.use("start")), before)
    assert any(not torch.equal(value, before[name]) for name, value in weights(given).items())
    # The pseudo-score network has learned nothing.
    assert_same_bits(weights(trainer.pseudo_score), weights(objective.teacher))
