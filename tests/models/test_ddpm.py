"""The published U-Net against a plain function of its state dict, and as a torch module."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.models.ddpm import DDPMUNet

CLASSES, GROUPS = 3, 2
# Attention at two levels, three levels, an odd number of blocks: unlike the presets.
SIZES: dict[str, dict[str, Any]] = {
    "as published, narrow": {"sample_size": 16, "channel_mult": (1, 2, 2, 2)},
    "wide at the end": {"channel_mult": (1, 2, 2, 2, 4), "attention_levels": (2,)},
    "another": {
        "channel_mult": (2, 1, 3),
        "attention_levels": (0, 2),
        "blocks_per_level": 3,
        "in_channels": 1,
    },
    "one level": {"channel_mult": (1,), "attention_levels": ()},
}


def tiny(**options: Any) -> DDPMUNet:
    """A small network whose parameters are all off their initial values."""
    torch.manual_seed(0)
    defaults = {"sample_size": 16, "num_classes": CLASSES, "channels": 8, "norm_num_groups": GROUPS}
    network = DDPMUNet(**(defaults | {"channel_mult": (1, 2)} | options)).eval()
    with torch.no_grad():
        for param in network.parameters():
            param += 0.1 * torch.randn_like(param)
    return network


def inputs(network: DDPMUNet, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    size, channels = network.config.sample_size, network.config.in_channels
    x = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.tensor([0, 38, 999]), torch.tensor([0, CLASSES, 2])


def test_float32_is_the_same_up_to_rounding() -> None:
    network = tiny(channel_mult=(1, 2, 2))
    expected = copy.deepcopy(network).double()(*inputs(network, torch.float64)).sample
    found = network(*inputs(network)).sample
    # Steps up to 999 times a frequency rounded to 2^-24 leave 6e-5 of a radian.
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors", "size"),
    [("cifar10", 38_632_323, 334, 32), ("stl10", 83_159_683, 396, 64)],
)
def test_published_sizes(preset: str, parameters: int, tensors: int, size: int) -> None:
    with torch.device("meta"):
        network = getattr(DDPMUNet, preset)()
        noise = network(torch.empty(2, 3, size, size), 5, torch.zeros(2, dtype=torch.int64)).sample
    shapes = [param.shape for param in network.parameters()]
    assert (sum(map(torch.Size.numel, shapes)), len(shapes)) == (parameters, tensors)
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]
    assert noise.shape == (2, 3, size, size)


def test_one_time_step_for_all_and_a_tuple() -> None:
    network = tiny()
    x, _, labels = inputs(network)
    expected = network(x, torch.full((3,), 7), labels).sample
    for t in (7, 7.0, torch.tensor(7)):
        (found,) = network(x, t, labels, return_dict=False)
        assert torch.equal(found, expected)


def test_no_class_is_the_null_vector() -> None:
    network = tiny()
    x, t, _ = inputs(network)
    null = torch.full((3,), network.null_label)
    assert (network.null_label, network.num_classes) == (CLASSES, CLASSES)
    noise = network(x, t, null).sample
    with torch.no_grad():
        network.classes_emb.weight.zero_()
    assert torch.equal(network(x, t, null).sample, noise)
    with torch.no_grad():
        network.null_classes_emb.add_(1)
    assert not torch.equal(network(x, t, null).sample, noise)


def test_without_a_null_vector() -> None:
    network, other = tiny(), tiny(null_class=False)
    weights = network.state_dict()
    del weights["null_classes_emb"]
    other.load_state_dict(weights)
    assert (other.null_label, other.num_classes) == (None, CLASSES)
    x, t, _ = inputs(network)
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(other(x, t, labels).sample, network(x, t, labels).sample)
    with pytest.raises(IndexError):
        other(x, t, labels + 1)


def test_every_parameter_learns() -> None:
    network = tiny(channel_mult=(1, 2, 2))
    x, t, labels = inputs(network)
    network(x, t, labels).sample.square().sum().backward()
    for name, param in network.named_parameters():
        assert param.grad is not None, name
        # A bias of the keys moves all logits of a pixel alike.
        assert param.grad.abs().max() > 0 or name.endswith("k.bias"), name


def test_dropout_in_train_mode_only() -> None:
    network = tiny(dropout=0.5)
    call = inputs(network)
    assert torch.equal(network(*call).sample, network(*call).sample)
    network.train()
    assert not torch.equal(network(*call).sample, network(*call).sample)


def test_copies_and_memory_formats() -> None:
    network = tiny()
    x, t, labels = inputs(network)
    expected = network(x, t, labels).sample
    assert torch.equal(copy.deepcopy(network)(x, t, labels).sample, expected)
    strided = copy.deepcopy(network).to(memory_format=torch.channels_last)
    found = strided(x.contiguous(memory_format=torch.channels_last), t, labels).sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bf16() -> None:
    network = tiny()
    expected = network(*inputs(network)).sample
    half = copy.deepcopy(network).bfloat16()
    found = half(*inputs(network, torch.bfloat16)).sample
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.03 * expected.norm()  # bf16 rounds to 0.4 %
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(*inputs(network)).sample
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_saved_by_diffusers(tmp_path: Path) -> None:
    network = tiny(**SIZES["another"])
    network.save_pretrained(tmp_path)
    loaded = DDPMUNet.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    call = inputs(network)
    assert torch.equal(loaded.eval()(*call).sample, network(*call).sample)
    assert dict(loaded.config)["attention_levels"] == [0, 2]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channel_mult": ()}, "at least one level"),
        ({"sample_size": 6, "channel_mult": (1, 1, 1)}, "6 cannot be halved 2 times"),
        ({"channels": 2}, "even and at least 4, got 2"),
        ({"channels": 9}, "even and at least 4, got 9"),
        ({"norm_num_groups": 32}, "8 channels does not divide into 32 groups"),
        ({"channel_mult": (1, 0)}, "0 channels does not divide"),
        ({"attention_levels": (2,)}, r"\[0, 2\), got \[2\]"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(PeckerError, match=message):
        tiny(**sizes)


def test_labels_are_needed() -> None:
    network = tiny()
    with pytest.raises(PeckerError, match="got None; the label of no class is 3"):
        network(*inputs(network)[:2])
