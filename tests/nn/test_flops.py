"""FLOPs under a mask: against counts by hand, published figures and a count of real training."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn.flops import BackwardFlops, NetworkFlops, count_flops
from pecker_fast.nn.skipping import skip_frozen_

CONV_1 = 2 * 4 * 6 * 16 * 9  # two FLOPs, 4 -> 6 channels, 16 pixels, 9 taps
CONV_2 = 2 * 6 * 8 * 16 * 9
FC = 2 * (8 * 16) * 5


def small_network():
    """Three layers: their forward passes are `CONV_1`, `CONV_2` and `FC`."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def call(network, image):
    return network(image)


def count(network, dense):
    """Count under the mask with these bool tensors; what is not named is frozen."""
    full = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in network.named_parameters()}
    for name, rows in dense.items():
        full[name][rows] = True
    return count_flops(network, SaliencyMask.from_dense(full), call, (4, 4, 4))


def test_every_parameter_learns():
    flops = count_flops(
        small_network(), SaliencyMask.full(small_network()), call, sample_shape=(4, 4, 4)
    )
    assert flops.forward == flops.through == CONV_1 + CONV_2 + FC
    # The image needs no gradient, so the first layer's input does not either.
    assert flops.full == BackwardFlops(CONV_2 + FC, CONV_1 + CONV_2 + FC) == flops.masked
    assert flops.skipped == 0


EVERYTHING = slice(None)
MASKS = {
    # salient rows -> input gradients, weight gradients
    "output channels": (
        {"0.weight": [1, 2], "2.weight": [7], "4.weight": [0, 1, 2], "0.bias": [1]},
        (CONV_2 + FC, CONV_1 * 2 // 6 + CONV_2 // 8 + FC * 3 // 5),
    ),
    "most output channels": (
        {"0.weight": [0, 1, 2, 3, 4], "2.weight": [7]},
        (CONV_2 + FC, CONV_1 + CONV_2 // 8),
    ),
    "a late layer": ({"4.weight": EVERYTHING}, (0, FC)),
    "rows of a middle layer": ({"2.weight": [0, 3]}, (FC, CONV_2 // 4)),
    "a bias of the first layer": ({"0.bias": [0]}, (CONV_2 + FC, 0)),
    "a bias of the last layer": ({"4.bias": EVERYTHING}, (0, 0)),
}


@pytest.mark.parametrize("case", MASKS)
def test_counts_by_hand(case):
    dense, expected = MASKS[case]
    flops = count(small_network(), dense)
    assert flops.masked == BackwardFlops(*expected)
    assert flops.full == BackwardFlops(CONV_2 + FC, CONV_1 + CONV_2 + FC)
    assert flops.skipped == pytest.approx(1 - sum(expected) / flops.full.total, abs=1e-15)


def test_a_mask_of_single_entries_in_every_channel_saves_nothing():
    network = small_network()
    for share in (1, 0.75):  # from three quarters of the rows on, none is skipped
        dense = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in network.named_parameters()}
        for salient in dense.values():
            salient.view(len(salient), -1)[: math.ceil(share * len(salient)), 0] = True
        mask = SaliencyMask.from_dense(dense)
        assert mask.density < 0.05
        assert count_flops(network, mask, call, (4, 4, 4)).skipped == 0


def test_the_network_is_left_as_it_was():
    network = small_network().eval()
    network[2].weight.requires_grad_(False)
    network.register_buffer("statistics", torch.ones(2))
    mask = SaliencyMask.random(network, 0.4, seed=0, granularity="out_channel")
    before = copy.deepcopy(network.state_dict())
    sliced = skip_frozen_(network, mask)
    assert sliced
    classes = [type(module) for module in network.modules()]
    first = count_flops(network, mask, call, (4, 4, 4))
    assert [type(module) for module in network.modules()] == classes
    assert not network.training and not network[2].weight.requires_grad
    for name, param in network.named_parameters():
        assert param.grad is None and param.device.type == "cpu", name
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    # It makes no difference whether it was sliced before, nor is what the mask lacks counted.
    skip_frozen_(network, None)
    assert count_flops(network, mask, call, (4, 4, 4)) == first
    assert first.full.weight_gradients == CONV_1 + FC


@pytest.mark.slow
def test_the_ddpm_unet_of_cifar10():
    from diffusers import UNet2DModel

    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            attention_head_dim=None,
            dropout=0.1,
            num_class_embeds=11,
        )
    zero = torch.zeros(1, dtype=torch.int64, device="meta")
    indices = {
        name: torch.arange(p.numel() if name.startswith("up_blocks.3") else 0, dtype=torch.int32)
        for name, p in unet.named_parameters()
    }
    mask = SaliencyMask(indices, {name: p.shape for name, p in unet.named_parameters()})
    flops = count_flops(unet, mask, lambda net, x: net(x, zero, zero).sample, (3, 32, 32))
    # Counted by hand for the published network: 12.44, 12.77 and 12.11 GFLOP an image for the
    # forward pass, input gradients and weight gradients, given to four digits.
    assert flops.forward == pytest.approx(12.44e9, rel=1e-3)
    assert flops.through == pytest.approx(12.77e9, rel=1e-3)
    assert flops.full.input_gradients == pytest.approx(12.77e9, rel=1e-3)
    assert flops.full.weight_gradients == pytest.approx(12.11e9, rel=1e-3)
    # 10 forward passes, 8 input gradients and 4 weight gradients for a remain and a forget image.
    assert 2 * flops.iteration() == pytest.approx(275.2e9, rel=1e-3)
    # Of the finest decoder level alone a backward pass is 26 % of the whole.
    assert 1 - flops.skipped == pytest.approx(0.26, abs=0.005)


def test_the_passes_of_an_iteration():
    flops = NetworkFlops(1, 100, BackwardFlops(10_000, 30_000), BackwardFlops(10_000, 0))
    assert flops.iteration() == 5 + 200 + 80_000
    assert flops.iteration(1) == 5 + 200 + 50_000
    assert flops.iteration(2) == 5 + 200 + 20_000


def test_the_same_as_training_on_the_cpu_does():
    from toys import tiny_unet

    unet = tiny_unet()
    mask = SaliencyMask.random(unet, 0.3, seed=4, granularity="out_channel")

    def forward(network, image):
        zero = torch.zeros(1, dtype=torch.int64, device=image.device)
        return network(image, zero, zero).sample

    flops = count_flops(unet, mask, forward, (1, 8, 8))
    for name, param in unet.named_parameters():
        param.requires_grad_(len(mask.indices[name]) > 0)
    assert len(skip_frozen_(unet, mask)) > 10
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count the fused attention of the CPU
        output = forward(unet, torch.randn(1, 1, 8, 8))
        with FlopCounterMode(display=False) as counter:
            output.sum().backward()
    assert counter.get_total_flops() == flops.masked.total < flops.full.total


class CrossAttention(nn.Module):
    """Two heads of 4 channels; keys and values come from a text of 6 tokens."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(3, 16)
        self.register_buffer("text", torch.zeros(1, 6, 3))

    def forward(self, x):
        k, v = self.kv(self.text).view(1, 6, 2, 8).transpose(1, 2).chunk(2, dim=-1)
        q = self.q(x).view(1, -1, 2, 4).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_counts_as_its_definition():
    network = CrossAttention()
    flops = count_flops(network, SaliencyMask.full(network), call, (10, 8))
    q, kv, product = 2 * 10 * 8 * 8, 2 * 6 * 3 * 16, 2 * 2 * 10 * 6 * 4
    assert flops.forward == q + kv + 2 * product
    assert flops.full == BackwardFlops(4 * product, q + kv)
    # Towards the image alone: of the weights (through v), of the scores, of q, of its input.
    assert flops.through == 2 * product + q


def test_recomputed_activations_count_as_backward():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            run = super().forward
            return checkpoint(run, x, use_reentrant=False) if self.training else run(x)

    network = Checkpointed(*small_network()).eval()
    flops = count_flops(network, SaliencyMask.full(network), call, (4, 4, 4))
    assert flops.forward == CONV_1 + CONV_2 + FC
    # Nothing needs the output of the last layer, so torch does not compute that again.
    assert flops.full.total == (CONV_2 + FC) + (CONV_1 + CONV_2 + FC) + (CONV_1 + CONV_2)


def test_networks_that_need_values_are_refused_with_the_reason():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum().item() > 0 else x

    network = Deciding()
    with pytest.raises(PeckerError, match=r"Deciding cannot be counted.*item\(\)") as error:
        count_flops(network, SaliencyMask.full(network), call, (4,))
    assert "\n" not in str(error.value)
    with pytest.raises(PeckerError, match="does not fit"):
        count_flops(network, SaliencyMask.full(small_network()), call, (4,))
