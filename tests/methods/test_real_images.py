"""What is drawn from real images, SalUn's mask, and images that do not fit."""

import copy
from collections import Counter

import pytest
import torch
from small import NAMES, small_images, small_objective
from toys import weights

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.image_batches import ShuffledEpochs, timesteps
from pecker_fast.runs.randomness import SALIENCY, TRAINING, IterationRandom

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (7, 7), (4, 10), (5, 1)])
def test_every_image_once_per_epoch_and_any_iteration_can_be_asked_for(count, batch_size):
    order = ShuffledEpochs(count, batch_size, seed=3)
    batches = [order.indices(iteration) for iteration in range(3 * count)]
    assert all(len(batch) == batch_size for batch in batches)
    seen = torch.cat(batches)
    for epoch in seen[: len(seen) // count * count].view(-1, count):
        assert sorted(epoch.tolist()) == list(range(count))
    for iteration in (3 * count - 1, 0, 2, 1):
        alone = ShuffledEpochs(count, batch_size, seed=3).indices(iteration)
        assert torch.equal(alone, batches[iteration])
        assert torch.equal(order.indices(iteration), batches[iteration])


def test_epochs_differ_and_seeds_and_streams():
    epoch = ShuffledEpochs(50, 50, seed=0)
    orders = [epoch.indices(0), epoch.indices(1), ShuffledEpochs(50, 50, seed=1).indices(0)]
    orders.append(ShuffledEpochs(50, 50, seed=0, stream=1).indices(0))
    assert len({tuple(order.tolist()) for order in orders}) == 4


@pytest.mark.parametrize(("count", "steps"), [(1, 1000), (7, 1000), (8, 1000), (2000, 4)])
def test_timesteps_come_in_pairs_and_cover_the_schedule(count, steps):
    t = timesteps(count, steps, IterationRandom(0, 0, CPU, TRAINING))
    assert (t.shape, t.dtype) == ((count,), torch.int64)
    half = count // 2 + 1
    assert torch.equal(t[half:], steps - 1 - t[: count - half])
    if steps == 4:
        assert torch.bincount(t, minlength=4).min() > 400  # 500 expected, deviation 19


def originals(batch):
    """Which images of the set a batch shows, by their pixels, mirrored or not."""
    pixels = ((batch.images + 1) * 127.5).round().to(torch.uint8)
    known = torch.stack([small_images().images, small_images().images.flip(-1)])
    same = (known[None] == pixels[:, None, None]).flatten(3).all(3)
    return same.any(1).nonzero()[:, 1].tolist(), same[:, 1].any(1).float().mean().item()


def test_an_epoch_shows_every_image_once_under_its_label():
    drawn = small_objective({"label_dropout": 0.0, "forget": 2})
    for term, wanted in (
        ("forget", list(range(2, 44, 4))),
        ("remain", [i for i in range(44) if i % 4 != 2]),
    ):
        seen = []
        for iteration in range(len(wanted)):  # 5 images each: five epochs
            batch = drawn.draw(term, IterationRandom(0, iteration, CPU, TRAINING))
            found, _ = originals(batch)
            assert batch.labels.tolist() == small_images().labels[found].tolist()
            seen += found
        assert Counter(seen) == dict.fromkeys(wanted, 5)


def test_images_labels_times_and_noise_of_a_batch():
    drawn = small_objective({"batch_size": 4000, "label_dropout": 0.25, "forget": 2})
    batch = drawn.draw("forget", IterationRandom(3, 0, CPU, TRAINING))
    assert batch.images.shape == batch.noise.shape == (4000, 1, 8, 8)
    assert -1 <= batch.images.min() < -0.9 and 0.9 < batch.images.max() <= 1
    assert torch.equal(batch.t[2001:], 999 - batch.t[:1999])
    assert 0 <= batch.t.min() < 5 and 995 < batch.t.max() <= 999
    assert abs(float(batch.noise.mean())) < 0.01 and abs(float(batch.noise.std()) - 1) < 0.01
    # A quarter is told "no class", the told and the imitated label independently of each other.
    assert set(batch.labels.tolist()) == {2, 4} and set(batch.imitated.tolist()) == {3, 4}
    told, imitated = batch.labels == 4, batch.imitated == 4
    for share, expected in ((told, 0.25), (imitated, 0.25), (told & imitated, 0.0625)):
        assert abs(float(share.float().mean()) - expected) < 0.03


@pytest.mark.parametrize(("flip", "share"), [(True, 0.5), (False, 0.0)])
def test_half_of_the_images_are_mirrored_and_none_without_flip(flip, share):
    drawn = small_objective({"batch_size": 400, "flip": flip}, dtype=torch.float64)
    batch = drawn.draw("forget", IterationRandom(0, 0, CPU, TRAINING))
    assert originals(batch)[1] == pytest.approx(share, abs=0.1)
    assert batch.images.dtype == batch.noise.dtype == torch.float64  # the network's


@pytest.mark.parametrize(
    ("forget", "override", "expected"), [(0, None, 1), (3, None, 0), ("star", "circle", 0)]
)
def test_the_class_that_is_imitated(forget, override, expected):
    drawn = small_objective({"forget": forget, "override": override, "label_dropout": 0.0})
    assert drawn.config.override == expected
    batch = drawn.draw("forget", IterationRandom(0, 0, CPU, TRAINING))
    assert set(batch.imitated.tolist()) == {expected}


# ---- the mask


def salun_mask(objective, density):
    """{name: int64 0/1}: two argsorts on |sum of clipped gradients|, every image once."""
    network = copy.deepcopy(objective.original).requires_grad_(True).eval()
    random = IterationRandom(objective.config.seed, 0, CPU, SALIENCY)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    totals = {name: 0 for name, _ in network.named_parameters()}
    seen = []
    for part in torch.arange(11).split(4):
        batch = objective._batch("forget", part, random, 0.0)
        seen += originals(batch)[0]
        assert set(batch.labels.tolist()) == {0}
        a = abar[batch.t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * batch.images + (1 - a).sqrt() * batch.noise
        nothing = torch.full_like(batch.labels, 4)
        guided = 3 * network(x_t, batch.t, batch.labels) - 2 * network(x_t, batch.t, nothing)
        loss = (batch.noise - guided).square().sum(dim=(1, 2, 3)).mean(dim=0)
        network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for name, param in network.named_parameters():
            totals[name] = totals[name] + param.grad
    assert seen == list(range(0, 44, 4))
    flat = -torch.cat([total.abs().flatten() for total in totals.values()])
    ranks = torch.argsort(torch.argsort(flat))
    parts = ranks.split([total.numel() for total in totals.values()])
    kept = round(len(flat) * density)
    return {
        name: (part < kept).long().reshape(total.shape)
        for (name, total), part in zip(totals.items(), parts, strict=True)
    }


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_the_mask_is_saluns(density):
    objective = small_objective({"mask.density": density}, dtype=torch.float64)
    network = copy.deepcopy(objective.original).requires_grad_(True)
    before = weights(network)
    assert objective.find_mask(network) == SaliencyMask.from_dense(salun_mask(objective, density))
    after = weights(network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(param.grad is None for param in network.parameters())


def test_what_the_mask_depends_on():
    def found(overrides, **model_of):
        objective = small_objective(overrides, **model_of)
        return objective.find_mask(copy.deepcopy(objective.original).requires_grad_(True))

    usual = found({})
    assert usual == found({})
    for change in ({"forget": 1}, {"seed": 1}, {"mask.kind": "random"}):
        assert found(change) != usual, change
    assert found({"mask.kind": "full"}).density == 1
    found({}, null_label=None)  # then without guidance


# ---- what does not fit


def test_images_that_do_not_fit():
    images = small_images()
    larger = ImageSet(images.images.repeat(1, 3, 1, 1), images.labels, NAMES, "colour")
    other = ImageSet(images.images, images.labels, ("a", "b", "c", "d"), "letters")
    more = ImageSet(images.images, images.labels, (*NAMES, "e"), "five")
    for given in (larger, other, more):
        with pytest.raises(PeckerError, match=given.source):
            small_objective(images=given)


@pytest.mark.parametrize(
    ("overrides", "method", "null_label", "named"),
    [
        ({"forget": "moon"}, "random_label", 4, "'moon'"),
        ({"forget": 2, "override": "star"}, "random_label", 4, "'star'"),
        ({}, "esd", None, "method esd"),
    ],
)
def test_classes_that_do_not_fit(overrides, method, null_label, named):
    with pytest.raises(PeckerError, match=named):
        small_objective(overrides, method, null_label=null_label)


def test_a_model_without_a_null_label_is_trained_without_it():
    batch = small_objective(null_label=None).draw("remain", IterationRandom(0, 0, CPU, TRAINING))
    assert set(batch.labels.tolist()) <= {1, 2, 3}
