"""Which layers of a network are sliced under a mask, and that training does not notice."""

import copy

import pytest
import torch
from torch import nn

from pecker_fast import MaskedAdamW
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn import skipping
from pecker_fast.nn.skipping import (
    SLICE_BELOW,
    SlicedConv2d,
    SlicedLayer,
    SlicedLinear,
    skip_frozen_,
    slice_weight_gradient_,
)


def mask_of(network, salient):
    """The mask with the given bool tensors (anything they broadcast from); the rest is frozen."""
    dense = {
        name: salient.get(name, torch.tensor(False)).expand(param.shape)
        for name, param in network.named_parameters()
    }
    return SaliencyMask.from_dense(dense)


def rows_of(count, *salient):
    """(count, 1) bool, True in the given rows."""
    dense = torch.zeros(count, 1, dtype=torch.bool)
    dense[list(salient)] = True
    return dense


def small_network():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 16, 8),
    )


def test_only_layers_with_few_salient_rows_are_sliced():
    network = small_network()
    weight = torch.zeros(8, 2, 3, 3, dtype=torch.bool)
    weight[2, 1, 0, 2] = weight[7, 0, 0, 0] = True  # single entries make their rows salient
    mask = mask_of(
        network,
        {
            "0.weight": weight,
            "2.weight": rows_of(8, *range(6))[:, :, None, None],
            "4.bias": torch.tensor(True),
        },
    )
    assert 6 / 8 >= SLICE_BELOW
    keys = list(network.state_dict())
    assert skip_frozen_(network, mask) == (SlicedLayer("0", 2, 8),)
    assert [type(network[i]) for i in (0, 2, 4)] == [SlicedConv2d, nn.Conv2d, nn.Linear]
    assert network[0].salient_rows.tolist() == [2, 7]
    assert list(network.state_dict()) == keys
    assert isinstance(network[0], nn.Conv2d)
    # Another mask takes the place of the first, None undoes it, and both may be repeated.
    other = mask_of(
        network, {"2.weight": rows_of(8, 5)[:, :, None, None], "4.weight": rows_of(8, 0, 1)}
    )
    for _ in range(2):
        assert skip_frozen_(network, other) == (SlicedLayer("2", 1, 8), SlicedLayer("4", 2, 8))
        assert [type(network[i]) for i in (0, 2, 4)] == [nn.Conv2d, SlicedConv2d, SlicedLinear]
        assert network[2].salient_rows.tolist() == [5]
    for nothing in (None, SaliencyMask.full(network), None):
        assert skip_frozen_(network, nothing) == ()
        assert [type(network[i]) for i in (0, 2, 4)] == [nn.Conv2d, nn.Conv2d, nn.Linear]
        assert not any(hasattr(module, "salient_rows") for module in network.modules())


def test_on_cuda_rows_come_in_multiples_and_only_a_quarter_is_worth_it(monkeypatch):
    monkeypatch.setattr(skipping, "_is_on_cuda", lambda module: True)
    layers = nn.ModuleDict({"few": nn.Linear(4, 256), "many": nn.Linear(4, 256)})
    layers.update({"small": nn.Linear(4, 64), "bias": nn.Conv2d(4, 256, 1)})
    salient = {"few.weight": rows_of(256, *range(0, 64, 2)), "small.weight": rows_of(64, 3)}
    salient |= {"many.weight": rows_of(256, *range(33)), "bias.bias": torch.tensor(True)}
    assert skip_frozen_(layers, mask_of(layers, salient)) == (SlicedLayer("few", 32, 256),)
    assert skipping.ROWS_ON_CUDA == 32 and skipping.SLICE_BELOW_ON_CUDA == 0.25
    salient["few.weight"] = rows_of(256, 7, 100)
    assert skip_frozen_(layers, mask_of(layers, salient)) == (SlicedLayer("few", 2, 256),)
    assert layers["few"].product_rows[:4].tolist() == [7, 100, 0, 1]
    assert len(layers["few"].product_rows) == 32


def test_a_network_that_is_one_layer():
    layer = nn.Linear(3, 4)
    assert skip_frozen_(layer, mask_of(layer, {"weight": rows_of(4, 3)})) == (
        SlicedLayer("", 1, 4),
    )
    assert layer.salient_rows.tolist() == [3]


def test_a_convolution_of_which_the_bias_alone_learns_is_sliced():
    # For its bias torch would make the weight gradient too, on a CPU. A product does not.
    network = small_network()
    mask = mask_of(network, {f"{i}.bias": torch.tensor(True) for i in (0, 4)})
    assert skip_frozen_(network, mask) == (SlicedLayer("0", 0, 8),)
    assert network[0].salient_rows.tolist() == []


def test_a_mask_of_another_model_changes_nothing():
    network = small_network()
    mask = mask_of(network, {"0.weight": rows_of(8, 1)[:, :, None, None]})
    skip_frozen_(network, mask)
    with pytest.raises(PeckerError, match=r"0\.weight"):
        skip_frozen_(network, SaliencyMask.full({"0.weight": torch.zeros(3, 3)}))
    assert type(network[0]) is SlicedConv2d


def test_layers_that_compute_something_else_are_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    layers = nn.ModuleDict(
        {
            "groups": nn.Conv2d(4, 4, 3, groups=2),
            "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            "same": nn.Conv2d(4, 4, 3, padding="same"),
            "transposed": nn.ConvTranspose2d(4, 4, 3),
            "one_dimensional": nn.Conv1d(4, 4, 3),
            "subclass": Scaled(4, 4),
            "embedding": nn.Embedding(4, 4),
            "norm": nn.GroupNorm(1, 4),
        }
    )
    mask = SaliencyMask.random(layers, 0.5, seed=0, granularity="out_channel")
    before = {name: type(module) for name, module in layers.items()}
    assert skip_frozen_(layers, mask) == ()
    assert {name: type(module) for name, module in layers.items()} == before
    assert not slice_weight_gradient_(layers["groups"], torch.tensor([0]))


def test_hooks_and_released_gradients_see_an_ordinary_gradient():
    network = small_network()
    mask = SaliencyMask.random(network, 0.3, seed=1, granularity="out_channel")
    other, x = copy.deepcopy(network), torch.randn(2, 2, 4, 4)
    shapes = []
    network[0].weight.register_hook(lambda grad: shapes.append(grad.shape))
    for net, sliced in ((network, True), (other, False)):
        layers = skip_frozen_(net, mask if sliced else None)
        assert bool(layers) == sliced
        optimizer = MaskedAdamW(
            net.named_parameters(), lr=1e-2, weight_decay=0.1, mask=mask, release_grads=sliced
        )
        for _ in range(3):
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert shapes == [network[0].weight.shape] * 3
    for name, param in network.named_parameters():
        # Steps of Adam are up to lr = 1e-2, whatever the size of the gradient; a thousandth of
        # one is more than the rounding of the gradients here.
        torch.testing.assert_close(param, other.get_parameter(name), rtol=0, atol=1e-5)


def tiny_unet_and_call():
    from toys import tiny_unet

    unet = tiny_unet().double()
    x, t, label = (
        torch.randn(2, 1, 8, 8, dtype=torch.float64),
        torch.tensor(9),
        torch.tensor([0, 3]),
    )
    return unet, lambda net: net(x, t, label).sample


def test_gradients_of_a_unet():
    unet, call = tiny_unet_and_call()
    mask = SaliencyMask.random(unet, 0.3, seed=2, granularity="out_channel")
    gradients = []
    for used in (None, mask):
        layers = skip_frozen_(unet, used)
        unet.zero_grad(set_to_none=True)
        torch.manual_seed(5)  # of the dropout
        call(unet).square().sum().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    convolutions = [name for name, _, _ in layers if "conv" in name]
    assert len(convolutions) > 5 and len(layers) > len(convolutions) + 3
    sliced = {f"{name}.weight" for name, _, _ in layers}
    for name, salient in mask.to_dense().items():
        expected, actual = (found[name] for found in gradients)
        # Errors of 1e-16 an operation grow through the layers.
        scale = expected.abs().max()
        assert (actual - expected)[salient].abs().max() <= 1e-12 * scale if salient.any() else True
        if name in sliced:
            assert torch.count_nonzero(actual[~salient]) == 0
            assert torch.count_nonzero(expected[~salient]) > 0


def test_nothing_runs_below_the_earliest_salient_layer():
    unet, call = tiny_unet_and_call()
    late = {
        n: torch.tensor(True) for n, _ in unet.named_parameters() if n.startswith("up_blocks.1")
    }
    mask = mask_of(unet, late)
    for name, param in unet.named_parameters():
        param.requires_grad_(len(mask.indices[name]) > 0)
    assert skip_frozen_(unet, mask) == ()  # whole tensors: nothing to slice
    differentiated = set()

    def remember(name):
        def hook(module, arguments, output):
            output = output if isinstance(output, torch.Tensor) else output[0]
            if output.requires_grad:
                differentiated.add(".".join(name.split(".")[:2]))

        return hook

    for name, module in unet.named_modules():
        # Without parameters: activations, of which diffusers may share one between all blocks.
        if name.count(".") >= 1 and list(module.parameters()):
            module.register_forward_hook(remember(name))
    call(unet).sum().backward()
    assert differentiated == {"up_blocks.1"}
    assert {n for n, p in unet.named_parameters() if p.grad is not None} == late.keys()


def test_an_iteration_of_the_trainer_makes_the_same_update():
    from toys import tiny_unet, toy_objective

    from pecker_fast.distill import Objective, PeckerTrainer

    settings = {
        "iterations": 1,
        "mask.kind": "random",
        "mask.granularity": "out_channel",
        "mask.apply": "both",
        "optimizer.beta1": 0.9,
        "optimizer.weight_decay": 0.1,
        # With the usual 1e-8 a gradient that is all rounding, as those of biases before a norm are,
        # would move its entry by a part of lr in any direction.
        "optimizer.eps": 1.0,
    }
    toy = toy_objective(settings)
    torch.manual_seed(1)
    teacher = tiny_unet()
    results = []
    for sliced in (False, True):
        objective = Objective(
            copy.deepcopy(teacher), toy.schedule, toy.conditions, toy.config, (1, 8, 8)
        )
        networks = copy.deepcopy(teacher), copy.deepcopy(teacher)
        trainer = PeckerTrainer(objective, generator=networks[0], pseudo_score=networks[1])
        for network in networks:
            layers = skip_frozen_(network, trainer.mask if sliced else None)
            assert (len(layers) > 10) == sliced
        list(trainer.run())
        assert trainer.verify_frozen().frozen_changed == 0
        results.append([dict(network.named_parameters()) for network in networks])
    for plain, sliced in zip(*results, strict=True):
        moved = 0.0
        for name, param in plain.items():
            # Two roundings of a weight of size 1; moves are up to 5e-4.
            torch.testing.assert_close(sliced[name], param, rtol=0, atol=2 * 2.0**-24)
            moved = max(moved, (param - teacher.get_parameter(name)).abs().max().item())
        assert moved > 4e-4
