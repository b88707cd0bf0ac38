"""Where an iteration spends its time: shares by kind of kernel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["KINDS", "kind_of", "shares"]

# (kind, what is in the name of its ATen operations (CPU) or of its kernels (GPU)). The first that
# matches counts: a kernel that normalises and applies SiLU is a normalisation, an implicit GEMM of
# cuDNN a convolution, the flash attention of cuDNN attention.
_WORDS = (
    ("optimizer", "adam|multi_tensor|salient|advance_kernel|sum_squares"),
    ("copy", "memcpy|memset|copy|catarray|nchwtonhwc|nhwctonchw|gather|upsample|constant_pad"),
    ("copy", r"::(cat|clone|to|fill|zero_|index|index_select)\b"),
    ("normalisation", "group_?norm|layer_?norm|rowwisemoments|computefusedparams"),
    ("normalisation", "computeinternalgradients"),
    ("normalisation", "^_(statistics|coefficients|apply|sums|combine|backward)_kernel"),  # ours
    ("attention, gemm", "attention|flash|fmha|sdpa|softmax"),
    ("convolution", "conv|fprop|dgrad|wgrad|winograd|cudnn"),
    ("attention, gemm", r"gemm|gemv|cublas|cutlass|addmm|bmm|::mm\b|linear|matmul|einsum"),
    ("reduction", "reduce|::sum|::mean|^_(channel|column)_sums_kernel"),
    ("elementwise", "elementwise|vectorized|silu|gelu|dropout|bernoulli|residual|distribution"),
    ("elementwise", "::(add|sub|mul|div|neg|abs|clamp|where|square|pow|sqrt|exp|sin|cos|sigmoid)"),
    ("elementwise", "::(rsub|randn|normal|random|randint|[gl][et]|eq)[a-z_]*$"),
)
KINDS = (*dict.fromkeys(kind for kind, _ in _WORDS), "other")
_PATTERNS = [(kind, re.compile(words)) for kind, words in _WORDS]
_OPTIMIZER_RANGES = ("Optimizer.step", "weight average")
_ROOT = "training iteration"


def kind_of(name: str) -> str:
    """The kind of an operation or a kernel by its name; "other" if nothing fits."""
    lowered = name.lower()
    return next((kind for kind, pattern in _PATTERNS if pattern.search(lowered)), "other")


def shares(step: Callable[[], object], device: str) -> dict[str, float]:
    """Each kind's share of the time of a call of `step`.

    On the CPU of the wall time, where "other" is also Python and what runs outside of torch; what
    happens inside an optimizer's step is the optimizer's. On a GPU of the time of all kernels, by
    their names: "optimizer" is Adam's kernels there, and clamps and masks count as elementwise.
    """
    on_gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler:
        with record_function(_ROOT):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = _kernel_times(profiler) if on_gpu else _operation_times(profiler)
    total = sum(found.values())
    return {kind: found[kind] / total for kind in KINDS}


def _kernel_times(profiler: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for event in profiler.events():
        annotation = event.name.startswith((_ROOT, *_OPTIMIZER_RANGES, "ProfilerStep"))
        if event.device_type == torch.autograd.DeviceType.CUDA and not annotation:
            found[kind_of(event.name)] += event.time_range.elapsed_us()
    return found


def _operation_times(profiler: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for event in profiler.events():
        if not _inside(event, (_ROOT,)):
            continue
        if _inside(event, _OPTIMIZER_RANGES):
            kind = "optimizer"
        else:
            kind = "other" if event.name == _ROOT else kind_of(event.name)
        found[kind] += event.self_cpu_time_total
    return found


def _inside(event: Any, names: tuple[str, ...]) -> bool:
    while event is not None:
        if event.name.startswith(names):
            return True
        event = event.cpu_parent
    return False
