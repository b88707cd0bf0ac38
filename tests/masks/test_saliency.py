"""saliency_scores against loops over .backward(), and what it must leave alone."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.masks import scores
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.scores import saliency_scores


class Net(nn.Module):
    """Convolution, batch norm with buffers, a parameter the loss never uses, dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.head(F.silu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 2, 6, 6, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(3)
    ]


def losses_of(net, batches):
    for images, labels in batches:
        yield lambda images=images, labels=labels: F.cross_entropy(net(images), labels)


def gradients(net, batches, clip=None):
    """One {name: gradient} per batch, by backward() and torch's own clipping."""
    result = []
    for loss in losses_of(net, batches):
        net.zero_grad(set_to_none=True)
        loss().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        result.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in net.named_parameters()
            }
        )
    net.zero_grad(set_to_none=True)
    return result


REDUCTIONS = {
    "abs_of_sum": lambda grads: sum(grads).abs(),
    "sum_of_abs": lambda grads: sum(grad.abs() for grad in grads),
    "sum_of_squares": lambda grads: sum(grad.square() for grad in grads),
}


@pytest.mark.parametrize("clip", [None, 1e-2, 1e6], ids=["unclipped", "clipped", "loose-clip"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(net, batches, reduction, clip):
    expected = gradients(net, batches, clip)
    scores = saliency_scores(net, losses_of(net, batches), reduction=reduction, clip_grad_norm=clip)
    assert list(scores) == [name for name, _ in net.named_parameters()]
    for name, param in net.named_parameters():
        assert scores[name].shape == param.shape
        assert scores[name].dtype == torch.float32
        assert not scores[name].requires_grad
        reduced = REDUCTIONS[reduction]([grads[name] for grads in expected])
        torch.testing.assert_close(scores[name], reduced, rtol=1e-6, atol=0)
    assert not scores["unused"].any()


def test_reductions_differ_where_they_should(net):
    """Gradients of opposite sign cancel in abs_of_sum only: the absolute value comes last."""
    one = [lambda: net.head.bias[0], lambda: -net.head.bias[0]]
    assert not saliency_scores(net, one)["head.bias"].any()
    assert saliency_scores(net, one, reduction="sum_of_abs")["head.bias"].tolist() == [2, 0, 0]


def test_fisher_ratio(net, batches):
    forget, remain = batches[:1], batches[1:]
    scores = saliency_scores(
        net,
        losses_of(net, forget),
        reduction="fisher_ratio",
        remain_losses=losses_of(net, remain),
    )
    above, below = gradients(net, forget), gradients(net, remain)
    for name in ("conv.weight", "norm.weight", "head.bias"):
        expected = above[0][name].square() / sum(grads[name].square() for grads in below)
        torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=0)
    assert not scores["unused"].any()  # 0 / 0


def test_retain_aware(net, batches):
    forget, remain = gradients(net, batches[:2]), gradients(net, batches[1:])
    scores = saliency_scores(
        net,
        losses_of(net, batches[:2]),
        reduction="retain_aware",
        remain_losses=losses_of(net, batches[1:]),
    )
    rms = {
        name: (sum(grads[name].double().square() for grads in remain) / len(remain)).sqrt()
        for name in scores
    }
    mean = torch.cat([value.flatten() for value in rms.values()]).mean()
    for name, score in scores.items():
        expected = sum(grads[name].double() for grads in forget).abs() / (rms[name] + 1e-3 * mean)
        torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-9)


def test_retain_aware_without_a_gradient_of_what_is_kept(net, batches):
    def flat():
        return (net(batches[0][0]) * 0).sum()

    with pytest.raises(PeckerError, match="no gradient"):
        saliency_scores(
            net, losses_of(net, batches), reduction="retain_aware", remain_losses=[flat]
        )


def test_fisher_ratio_of_an_entry_that_only_forgetting_needs(net):
    scores = saliency_scores(
        net,
        lambda: 1e3 * net.unused[0] + 1e-9 * net.unused[1],
        reduction="fisher_ratio",
        remain_losses=lambda: net.unused[2] * 1.0,
    )["unused"]
    assert scores[0] == float("inf")
    assert 0 < scores[1] < float("inf")
    assert scores[2:].tolist() == [0, 0, 0]
    assert SaliencyMask.from_scores({"unused": scores}, 0.2).indices["unused"].tolist() == [0]


def test_one_function_is_one_batch(net, batches):
    one = next(iter(losses_of(net, batches)))
    for alone, listed in zip(
        saliency_scores(net, one).values(), saliency_scores(net, [one]).values(), strict=True
    ):
        assert torch.equal(alone, listed)


def test_batches_are_consumed_one_at_a_time(net, batches):
    order = []

    def losses():
        for number, loss in enumerate(losses_of(net, batches)):
            order.append(f"draw {number}")

            def run(loss=loss, number=number):
                order.append(f"run {number}")
                return loss()

            yield run

    saliency_scores(net, losses())
    assert order == ["draw 0", "run 0", "draw 1", "run 1", "draw 2", "run 2"]


def test_nothing_of_the_model_is_disturbed(net, batches):
    net.train()
    net.norm.eval()
    net.head.bias.requires_grad_(False)
    net.conv.weight.grad = torch.full_like(net.conv.weight, 7.0)
    weights = {name: value.clone() for name, value in net.state_dict().items()}

    def meddling_loss():
        net.train()
        net.head.bias.requires_grad_(True)
        images, labels = batches[0]
        return F.cross_entropy(net(images), labels)

    scores = saliency_scores(net, [meddling_loss])
    assert "head.bias" not in scores
    assert (net.training, net.norm.training, net.conv.training) == (True, False, True)
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert (net.conv.weight.grad == 7).all()
    assert net.conv.bias.grad is None
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_the_model_is_restored_after_an_error(net, batches):
    net.train()
    before = net.norm.running_mean.clone()

    def failing():
        net.eval()
        net.norm.train()
        net(batches[0][0])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        saliency_scores(net, [failing])
    assert net.training
    assert torch.equal(net.norm.running_mean, before)


def test_works_where_gradients_are_switched_off(net, batches):
    expected = saliency_scores(net, losses_of(net, batches))
    with torch.no_grad():
        found = saliency_scores(net, losses_of(net, batches))
        assert not torch.is_grad_enabled()
    assert all(torch.equal(found[name], score) for name, score in expected.items())


def test_scores_are_in_logical_order_for_channels_last(net, batches):
    expected = saliency_scores(net, losses_of(net, batches))
    net = net.to(memory_format=torch.channels_last)
    scores = saliency_scores(net, losses_of(net, batches))
    assert scores["conv.weight"].is_contiguous()
    torch.testing.assert_close(scores["conv.weight"], expected["conv.weight"])


def test_some_parameters_only(net, batches):
    scores = saliency_scores(net, losses_of(net, batches), parameters=["head.weight", "conv.bias"])
    assert list(scores) == ["head.weight", "conv.bias"]
    everything = saliency_scores(net, losses_of(net, batches))
    assert torch.equal(scores["conv.bias"], everything["conv.bias"])
    with pytest.raises(PeckerError, match=r"no trainable parameter 'head\.wieght'"):
        saliency_scores(net, losses_of(net, batches), parameters=["head.wieght"])


def test_clipping_is_over_the_scored_parameters(net):
    """3-4-5: the norm of both gradients is 5, that of the first alone is 3."""

    def loss():
        return 3 * net.unused[0] + 4 * net.head.bias[0]

    both = saliency_scores(net, loss, clip_grad_norm=1.0)
    assert float(both["unused"][0]) == pytest.approx(3 / 5, rel=1e-5)
    one = saliency_scores(net, loss, clip_grad_norm=1.0, parameters=["unused"])
    assert float(one["unused"][0]) == pytest.approx(1.0, rel=1e-5)


def test_a_mapping_of_tensors():
    weight = torch.ones(3, requires_grad=True)
    scores = saliency_scores({"w": weight}, lambda: (weight * torch.tensor([1.0, -2, 3])).sum())
    assert scores["w"].tolist() == [1, 2, 3]
    with pytest.raises(PeckerError, match="'w' does not require grad"):
        saliency_scores({"w": weight.detach()}, lambda: weight.sum())


def test_dtypes():
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    double = torch.ones(2, dtype=torch.float64, requires_grad=True)
    factor = 1 + 2**-40
    scores = saliency_scores(
        {"half": half, "double": double}, [lambda: half.sum() + factor * double.sum()] * 300
    )
    assert scores["half"].dtype == torch.float32
    assert scores["half"].tolist() == [300, 300]  # a bfloat16 sum would stop at 256
    assert scores["double"].dtype == torch.float64
    assert scores["double"].tolist() == pytest.approx([300 * factor] * 2, rel=1e-15)


def test_sparse_gradients():
    table = nn.Embedding(5, 2, sparse=True)
    rows = torch.tensor([1, 3, 3])
    scores = saliency_scores(table, lambda: table(rows).sum(), clip_grad_norm=100.0)
    assert scores["weight"].tolist() == [[0, 0], [1, 1], [0, 0], [2, 2], [0, 0]]


# ---- Refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_batch(net, value):
    losses = [lambda: net.unused.sum(), lambda: net.unused.sum() * value]
    with pytest.raises(PeckerError, match=rf"losses\[1\] is {value}: a saliency needs finite"):
        saliency_scores(net, losses)


def test_a_gradient_that_is_not_finite_names_batch_and_parameter(net):
    def bad():  # the square root is finite at 0, its derivative is not
        return (net.unused - 1).sqrt().sum() + net.head.bias.sum()

    with pytest.raises(PeckerError, match=r"gradient of losses\[1\] is not finite for 'unused';"):
        saliency_scores(net, [lambda: net.unused.sum(), bad])
    with pytest.raises(PeckerError, match=r"gradient of remain_losses\[0\] is not finite"):
        saliency_scores(net, lambda: net.unused.sum(), reduction="fisher_ratio", remain_losses=bad)


def test_losses_that_rank_nothing(net, batches):
    with pytest.raises(PeckerError, match="losses is empty: at least one batch"):
        saliency_scores(net, [])
    with pytest.raises(PeckerError, match=r"losses\[0\] does not depend on any parameter"):
        saliency_scores(net, lambda: net.unused.detach().sum())
    with pytest.raises(PeckerError, match=r"losses\[0\] switched off requires_grad of 'head"):
        saliency_scores(net, lambda: net.unused.sum() + 0 * net.head.requires_grad_(False).bias[0])
    other = torch.ones(1, requires_grad=True)
    with pytest.raises(PeckerError, match=r"losses\[0\] depends on none of the 7 parameters"):
        saliency_scores(net, lambda: other.sum())


def test_losses_of_the_wrong_kind(net):
    with pytest.raises(PeckerError, match=r"losses\[0\] must return a scalar, got shape \(5,\)"):
        saliency_scores(net, lambda: net.unused * 2)
    with pytest.raises(TypeError, match=r"losses\[0\] must return a tensor, got float"):
        saliency_scores(net, lambda: 1.0)
    with pytest.raises(TypeError, match=r"losses\[0\] must be a function .*, got Tensor"):
        saliency_scores(net, [net.unused.sum()])


def test_bad_arguments(net):
    def loss():
        return net.unused.sum()

    with pytest.raises(PeckerError, match=r"reduction must be one of abs_of_sum, .*; got 'mean'"):
        saliency_scores(net, loss, reduction="mean")
    with pytest.raises(PeckerError, match="got reduction 'fisher_ratio' and no remain_losses"):
        saliency_scores(net, loss, reduction="fisher_ratio")
    with pytest.raises(PeckerError, match="got reduction 'abs_of_sum' and remain_losses"):
        saliency_scores(net, loss, remain_losses=loss)
    for norm in (0, -1.0, float("nan")):
        with pytest.raises(PeckerError, match="clip_grad_norm must be above 0 or None"):
            saliency_scores(net, loss, clip_grad_norm=norm)
    with pytest.raises(PeckerError, match="Net has no trainable parameter to score"):
        saliency_scores(net.requires_grad_(False), loss)


def test_squares_that_overflow_in_both_losses(net):
    def loss():
        return net.unused[0] * 1e30

    with pytest.raises(PeckerError, match="the scores of 'unused' overflow"):
        saliency_scores(net, loss, reduction="fisher_ratio", remain_losses=loss)


def test_scores_make_a_mask(net, batches):
    mask = SaliencyMask.from_scores(saliency_scores(net, losses_of(net, batches)), 0.25)
    mask.check(net)
    assert mask.nnz == round(0.25 * mask.numel)
    assert mask.indices["unused"].numel() == 0


def test_one_gradient_at_a_time_is_alive(monkeypatch):
    # Beside the sums, which are as large as the network, there is no room for as much again.
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
    alive, most = weakref.WeakSet(), []
    add = scores._add

    def watched(total, grad, reduction):
        alive.add(grad.untyped_storage())
        most.append(len(alive))
        return add(total, grad, reduction)

    monkeypatch.setattr(scores, "_add", watched)
    saliency_scores(model, lambda: model(torch.ones(4, 16)).square().sum())
    assert len(most) == 16 and max(most) <= 3
