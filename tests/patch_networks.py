"""Networks that patches are tested on, what is erased from them, and their bytes."""

import copy

import numpy as np
import torch
from torch import nn

from pecker_fast import SaliencyMask


class Network(nn.Module):
    """Convolution, norm with buffers, a scalar, a parameter without entries, and a tied weight."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3)
        self.down_blocks = nn.ModuleList([nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 8, bias=False)
        self.tied = self.head
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.none = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("derived", torch.ones(2), persistent=False)
        self.to(dtype)


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Network(dtype)


def raw(tensor):
    """The entries' bytes in logical order."""
    return bytes(tensor.detach().clone(memory_format=torch.contiguous_format).untyped_storage())


def content(net):
    named = net.state_dict() if isinstance(net, nn.Module) else net
    return {name: raw(tensor) for name, tensor in named.items()}


def weights_of(net):
    """What a weights file holds: a tied weight once."""
    named = net.state_dict().items()
    return {name: tensor.clone() for name, tensor in named if not name.startswith("tied.")}


def erased_from(base, mask, seed=1):
    """A copy of the network with random bits, NaN and -0.0 among them, at the salient entries."""
    generator = np.random.default_rng(seed)
    erased = copy.deepcopy(base)
    parameters = dict(erased.named_parameters())
    for name, positions in mask.indices.items():
        parameter = parameters[name]
        flat = parameter.detach().clone(memory_format=torch.contiguous_format).flatten()
        width = flat.element_size()
        bits = generator.integers(0, 256, (positions.numel(), width), dtype=np.uint8)
        # Both zeros, and NaN with a payload and a sign, in any format of one sign bit.
        for row, pattern in enumerate([[0x80], [0x00], [0xFF, 0xFF], [0x7F, 0xFF, 0x01]]):
            if row < len(bits):
                bits[row] = 0
                reversed_pattern = pattern[:width][::-1]
                bits[row, width - len(reversed_pattern) :] = reversed_pattern
        values = torch.from_numpy(bits.reshape(-1)).view(flat.dtype)
        flat[positions.long()] = values
        with torch.no_grad():
            parameter.copy_(flat.view(parameter.shape))
    return erased


def mask_of(net, density=0.2, seed=3):
    return SaliencyMask.random(net, density, seed)


def where(net, places):
    """A mask with the given positions, by parameter name."""
    named = dict(net.named_parameters())
    indices = {n: torch.tensor(places.get(n, []), dtype=torch.int32) for n in named}
    return SaliencyMask(indices, {n: p.shape for n, p in named.items()})
