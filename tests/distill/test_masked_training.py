"""Masks in the loop: what is frozen keeps its bits, whatever kind of mask and however renewed."""

import torch
from toys import ToyDenoiser, assert_same_bits, toy_objective, train, weights

from pecker_fast.distill import PeckerTrainer, load_config
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.runs.learner import Learner, masked_adamw


def test_frozen_entries_keep_their_bits_and_salient_ones_move():
    objective = toy_objective({"optimizer.weight_decay": 0.1, "optimizer.beta1": 0.9})
    trainer, _ = train(objective)
    for network in (None, trainer.ema_generator()):
        check = trainer.verify_frozen(network)
        assert check.frozen == trainer.mask.numel - trainer.mask.nnz > 0
        assert check.frozen_changed == 0
        assert check.salient_changed > 0.9 * check.salient
    with torch.no_grad():
        name, frozen = next((n, ~m) for n, m in trainer.mask.to_dense().items() if not m.all())
        param = trainer.generator.get_parameter(name)
        param[frozen] = torch.nextafter(param[frozen], torch.tensor(9.0))
    assert trainer.verify_frozen().frozen_changed == frozen.sum()


def test_the_pseudo_score_is_dense_unless_both_are_masked():
    for apply in ("generator", "both"):
        objective = toy_objective({"mask.apply": apply})
        trainer, _ = train(objective)
        dense = trainer.mask.to_dense()
        start, end = weights(objective.teacher), weights(trainer.pseudo_score)
        frozen_moved = any(not torch.equal(start[n][~m], end[n][~m]) for n, m in dense.items())
        assert frozen_moved == (apply == "generator")


def test_refreshed_masks_leave_the_rest_alone():
    objective = toy_objective({"mask.refresh_every": 2, "mask.density": 0.1, "iterations": 7})
    trainer = PeckerTrainer(objective)
    masks, states, averages = [], [], []
    for _ in trainer.run():
        masks.append(trainer.mask)
        states.append(weights(trainer.generator))
        averages.append(weights(trainer.ema_generator()))
    assert masks[0] == masks[1] != masks[2] == masks[3] != masks[4]
    union = masks[0] | masks[2] | masks[4] | masks[6]
    assert trainer.ever_salient == union
    assert union.nnz > masks[0].nnz
    assert trainer.verify_frozen().frozen_changed == 0
    # What left the mask stops moving, and its average still approaches it.
    for name, dense in (masks[0] & ~masks[2]).to_dense().items():
        assert torch.equal(states[1][name][dense], states[3][name][dense])
        expected = averages[1][name].lerp(states[1][name], 0.1).lerp(states[1][name], 0.1)
        torch.testing.assert_close(averages[3][name][dense], expected[dense])


def test_a_refreshed_mask_keeps_the_moments_of_what_stays():
    network = ToyDenoiser()
    masks = [SaliencyMask.random(network, 0.5, seed=seed) for seed in (0, 1)]
    config = load_config(None, {"optimizer.beta1": 0.9})
    learner = Learner(network, masks[0], 1e-3, masked_adamw(config.optimizer))
    learner.learn()
    for param in network.parameters():
        param.grad = torch.randn_like(param)
    learner.step()

    def moments(mask):
        dense = {name: torch.zeros(shape) for name, shape in mask.shapes.items()}
        for name, param in network.named_parameters():
            dense[name].flatten()[mask.indices[name].long()] = learner.optimizer.state[param][
                "exp_avg_sq"
            ]
        return dense

    before = moments(masks[0])
    learner.set_mask(masks[1])
    after, stays = moments(masks[1]), (masks[0] & masks[1]).to_dense()
    for name in before:
        assert torch.equal(after[name], before[name] * stays[name])
    assert any(bool(value.any()) for value in after.values())


def test_parameters_that_are_frozen_as_a_whole_get_no_gradient():
    objective = toy_objective({"mask.granularity": "tensor", "iterations": 1})
    seen = []

    def make(network, mask, lr):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_: seen.append({n for n, p in network.named_parameters() if p.grad is not None})
        )
        return optimizer

    trainer, _ = train(objective, make_optimizer=make)
    salient = {name for name, positions in trainer.mask.indices.items() if len(positions)}
    assert 0 < len(salient) < len(trainer.mask)
    assert seen[1] == salient


def test_a_given_mask_and_given_starts_are_used():
    objective = toy_objective()
    starts = ToyDenoiser(), ToyDenoiser()
    before = weights(starts[0])
    mask = SaliencyMask.random(starts[0], 0.2, seed=3)
    trainer, _ = train(objective, generator=starts[0], pseudo_score=starts[1], mask=mask)
    assert trainer.mask == mask
    assert trainer.generator is starts[0]
    check = trainer.verify_frozen()
    assert (check.frozen, check.frozen_changed) == (mask.numel - mask.nnz, 0)
    frozen = (~mask).to_dense()
    for name, param in trainer.generator.named_parameters():
        assert torch.equal(param[frozen[name]], before[name][frozen[name]])


def test_a_user_frozen_parameter_stays_frozen():
    objective = toy_objective()
    start = ToyDenoiser()
    start.conv_in.requires_grad_(False)
    before = weights(start.conv_in)
    trainer, _ = train(objective, generator=start)
    assert not any(name.startswith("conv_in") for name in trainer.mask)
    assert_same_bits(weights(trainer.generator.conv_in), before)
    assert trainer.verify_frozen().frozen_changed == 0
