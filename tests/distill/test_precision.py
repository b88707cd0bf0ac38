"""bf16 weights: the result has the original's bits where frozen, its masters where salient."""

import torch
from toys import toy_objective, train, weights

from pecker_fast.distill import PeckerTrainer

BF16 = {"precision": "bf16", "generator.lr": 1e-6, "pseudo_score.lr": 1e-6}


def test_the_result_is_the_original_outside_of_the_mask():
    objective = toy_objective(BF16 | {"generator.lr": 1e-3})
    assert {p.dtype for p in objective.original.parameters()} == {torch.float32}
    trainer, _ = train(objective)
    assert {p.dtype for p in trainer.generator.parameters()} == {torch.bfloat16}
    result = trainer.ema_generator()
    assert {p.dtype for p in result.parameters()} == {torch.float32}
    for network in (None, result):
        check = trainer.verify_frozen(network)
        assert check.frozen_changed == 0 < check.frozen
        assert check.salient_changed > 0.5 * check.salient
    # In bf16 most frozen entries would have lost bits.
    rounded = [p.bfloat16().float() for p in objective.original.parameters()]
    pairs = zip(rounded, objective.original.parameters(), strict=True)
    assert sum(int((a != b).sum()) for a, b in pairs) > trainer.mask.numel / 2


def test_updates_too_small_for_bf16_are_in_the_result():
    """At lr 1e-6 nearly no weight moves by half a unit of bf16, and every master does."""
    trainer, _ = train(toy_objective(BF16 | {"ema.decay": None}))
    moved = trainer.verify_frozen().salient_changed
    result = trainer.verify_frozen(trainer.ema_generator())
    assert moved < 0.2 * result.salient
    assert result.salient_changed > 0.9 * result.salient


def test_the_average_follows_the_masters():
    trainer = PeckerTrainer(toy_objective(BF16 | {"ema.decay": 0.5, "iterations": 4}))
    expected = None
    for _ in trainer.run():
        masters = {name: master for name, (_, master) in trainer.learner.masters().items()}
        if expected is None:
            start = weights(trainer._objective.original)
            where = trainer.mask.indices
            expected = {n: start[n].flatten()[where[n].long()] for n in masters}
        expected = {n: 0.5 * expected[n] + 0.5 * masters[n] for n in masters}
    for name, average in trainer._ema.state_dict().items():
        torch.testing.assert_close(average, expected[name])
        assert not torch.equal(average, average.bfloat16().float())


def test_a_refreshed_mask_keeps_what_left_it():
    """Entries that left the mask have no master any more: the average takes their weights."""
    settings = BF16 | {"mask.refresh_every": 2, "mask.density": 0.1, "generator.lr": 1e-2}
    trainer, _ = train(toy_objective(settings | {"iterations": 5, "ema.decay": None}))
    assert trainer.ever_salient.nnz > trainer.mask.nnz
    result = weights(trainer.ema_generator())
    masters = trainer.learner.masters()
    left = (trainer.ever_salient & ~trainer.mask).to_dense()
    for name, param in trainer.generator.named_parameters():
        assert torch.equal(result[name][left[name]], param[left[name]].float())
        positions, master = masters[name]
        assert torch.equal(result[name].flatten()[positions.long()], master)


def test_fp32_and_bf16_learn_alike():
    """From the same seed the same noise: the pseudo-scores move in the same direction.

    Not the generators: their loss starts as the difference of two equal networks.
    """
    moves = []
    for precision in ("fp32", "bf16"):
        objective = toy_objective({"precision": precision, "pseudo_score.lr": 1e-4})
        before = weights(objective.original)
        trainer, _ = train(objective)
        after = weights(trainer.pseudo_score)
        after |= {name: master for name, (_, master) in trainer._psi.masters().items()}
        moves.append(torch.cat([(after[n] - before[n]).flatten() for n in before]))
    # Masters start from the fp32 weights: without that, rounding alone makes it 0.65.
    assert torch.cosine_similarity(*moves, dim=0) > 0.99
