"""The published U-Net as a plain function of its state dict, from its description.

Shares no line with `pecker_fast.models.ddpm`: no module, attention as two products and a softmax,
the group norm written out, "no class" as the vector that it is.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

Weights = dict[str, Tensor]


def predicted_noise(w: Weights, x: Tensor, t: Tensor, labels: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) float64 noise."""

    def silu(v: Tensor) -> Tensor:
        return v / (1 + (-v).exp())

    def norm(name: str, v: Tensor) -> Tensor:
        n, c, h, width = v.shape
        grouped = v.reshape(n, groups, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        v = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(n, c, h, width)
        return v * w[f"{name}.weight"][None, :, None, None] + w[f"{name}.bias"][None, :, None, None]

    def conv(name: str, v: Tensor, **options: int) -> Tensor:
        return conv2d(v, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def dense(name: str, v: Tensor) -> Tensor:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def embed(name: str, v: Tensor) -> Tensor:
        return dense(f"{name}.dense.1", silu(dense(f"{name}.dense.0", v)))

    def residual(name: str, v: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", silu(norm(f"{name}.norm1", v)), padding=1)
        h = h + dense(f"{name}.temb_cemb_proj", silu(both))[..., None, None]
        h = conv(f"{name}.conv2", silu(norm(f"{name}.norm2", h)), padding=1)
        return h + (conv(f"{name}.nin_shortcut", v) if f"{name}.nin_shortcut.bias" in w else v)

    def attention(name: str, v: Tensor) -> Tensor:
        h = norm(f"{name}.norm", v)
        q, k, u = (conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        # Pixel i attends to pixel j.
        weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / math.sqrt(v.shape[1]), dim=2)
        attended = torch.einsum("nij,ncj->nci", weights, u).reshape(v.shape)
        return v + conv(f"{name}.proj_out", attended)

    def block(name: str, index: int, v: Tensor) -> Tensor:
        v = residual(f"{name}.block.{index}", v)
        has_attention = f"{name}.attn.{index}.q.weight" in w
        return attention(f"{name}.attn.{index}", v) if has_attention else v

    def count(prefix: str) -> int:
        start = len(prefix.split("."))
        return len({key.split(".")[start] for key in w if key.startswith(prefix + ".")})

    width = w["null_classes_emb"].numel()
    half = width // 2
    rates = [10000 ** (-i / (half - 1)) for i in range(half)]
    waves = [
        [math.sin(s * r) for r in rates] + [math.cos(s * r) for r in rates] for s in t.tolist()
    ]
    table, null = w["classes_emb.weight"], w["null_classes_emb"]
    classes = torch.stack([null if c == len(table) else table[c] for c in labels.tolist()])
    both = torch.cat(
        [embed("temb", torch.tensor(waves, dtype=torch.float64)), embed("cemb", classes)], dim=1
    )

    levels = count("down")
    kept = [conv("conv_in", x, padding=1)]
    for level in range(levels):
        for index in range(count(f"down.{level}.block")):
            kept.append(block(f"down.{level}", index, kept[-1]))
        if level < levels - 1:
            wider = x.new_zeros(*kept[-1].shape[:2], *(side + 1 for side in kept[-1].shape[2:]))
            wider[..., :-1, :-1] = kept[-1]
            kept.append(conv(f"down.{level}.downsample.conv", wider, stride=2))

    h = residual("mid.block_2", attention("mid.attn_1", residual("mid.block_1", kept[-1])))
    for level in reversed(range(levels)):
        for index in range(count(f"up.{level}.block")):
            h = block(f"up.{level}", index, torch.cat([h, kept.pop()], dim=1))
        if level:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(f"up.{level}.upsample.conv", h, padding=1)
    return conv("conv_out", silu(norm("norm_out", h)), padding=1)
