"""Compiles every Triton kernel as its launcher would, for cards that need not be there.

    python tests/kernels/compile_kernels.py 90 [--brief]

prints one JSON object per variant: registers, stack, wide accesses, forbidden instructions. The
launchers run with recorded instead of real launches, so types and options are theirs. Must run
without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import pecker_fast.kernels
from pecker_fast.kernels import (
    adamw,
    advance,
    channels_last,
    geglu,
    group_norm,
    group_norm_backward,
    layer_norm,
    residual,
    salient,
    topk_select,
    topk_write,
)
from pecker_fast.kernels.elements import STORED

FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
STEP_DTYPES = [
    (FP32, FP32), (FP64, FP64), (BF16, BF16), (FP16, FP16),
    (BF16, FP32), (FP16, FP32), (FP32, BF16), (FP32, FP16),
]  # fmt: skip
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {
    FP32: "*fp32", FP64: "*fp64", BF16: "*bf16", FP16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
# The files with the kernels of the U-Net's blocks. No backend has to give their bits.
BLOCKS = ("channels_last", "geglu", "group_norm", "group_norm_backward", "layer_norm", "residual")
# Contraction, flushed denormals and approximate division change bits.
FORBIDDEN = r"\bfma\.\S+|\S+\.ftz\S*|\S+\.approx\S*|\bdiv\.full\S*"


def run_launchers(brief: bool) -> None:
    """Every launcher with every combination of types it takes; brief: without the rare ones."""
    i64, f64 = torch.ones(2, 4, dtype=torch.int64), torch.ones(4, dtype=FP64)
    i32, one = torch.ones(4, 2, dtype=torch.int32), torch.ones((), dtype=FP32)
    for flag in (None, one):
        advance.advance(i64, i64, f64, one, one, f64, flag)
    for (param, grad), extras, flag in itertools.product(STEP_DTYPES, (False, True), (None, one)):
        if not (brief and flag is one and not extras):
            adamw.masked_adamw(param, grad, extras, i64, i64, f64, i32, flag, flag)
    for operation, dense, compact in itertools.product(salient.OPERATIONS, STORED, (FP32, FP64)):
        rare = (dense == FP64) != (compact == FP64)
        if not (brief and rare):
            salient.salient(operation, dense, compact, i64, i32, 0.5)
        if not (brief or rare):  # the same body
            vectors = torch.ones(3, dtype=dense), torch.ones(3, dtype=compact)
            salient.salient_one(operation, vectors[0], i32, vectors[1], 0.5)
    for operation in ("gather", "scatter", "swap"):
        salient.salient(operation, BF16, BF16, i64, i32, 0.5)
    salient.salient_one("ema", i64.double(), None, i64.double(), 0.5)
    for dtype in STORED:
        salient.sum_squares(dtype, i64, i32, f64)
    topk_select.pick(i64, i64, 0, 11)
    for dtype in (FP32, FP64):
        scores = torch.ones(4, dtype=dtype)
        topk_select.sample(dtype, i64, i64, scores)
        topk_select.collect(dtype, i64, i32, scores, i64, i64, scores, i32, i64)
        topk_select.settle(dtype, scores, i32, 3, i64, i64, i64)
        topk_write.trim(dtype, i64, i32, i64, i64, i64)
        for grouped in (False, True):
            topk_select.histogram(dtype, grouped, i64, i32, i64, 0, 11, i64)
            topk_write.count(dtype, grouped, i64, i32, i64, i64, i64)
            topk_write.write(dtype, grouped, i64, i32, i64, i64, i64, i32)


def run_launchers_of_blocks(brief: bool) -> None:
    """The kernels of the U-Net's blocks: activations and parameters of the usual dtypes."""
    samples, channels, skip_channels, groups = 2, 128, 64, 32
    for dtype, parameter in [(BF16, FP32), (BF16, BF16), (FP32, FP32)]:
        rare = dtype == parameter
        if brief and rare:
            continue
        x = torch.ones(samples, channels, 16, 16, dtype=dtype)
        skip = torch.ones(samples, skip_channels, 16, 16, dtype=dtype)
        y = torch.cat([x, skip], dim=1)
        weight = torch.ones(channels + skip_channels, dtype=parameter)
        add = torch.ones(samples, channels + skip_channels, dtype=parameter)
        if not rare or dtype == FP32:
            tokens = torch.ones(samples, 16, 512, dtype=dtype)
            geglu.forward(tokens, tokens[..., :256])
            geglu.backward(tokens, tokens[..., :256], tokens)
            # As wide as Stable Diffusion's, of the first level and of the last.
            for wide in (torch.ones(samples, 16, width, dtype=dtype) for width in (320, 1280)):
                vector, numbers = wide[0, 0].to(parameter), torch.ones(samples * 16, 2)
                for other, sums in [(None, None), (wide, None), (wide, numbers)]:
                    layer_norm.forward(wide, other, vector, vector, 1e-5, wide, wide, numbers)
                    layer_norm.backward(wide, wide, other, vector, numbers, wide, sums)
        partials = torch.ones(samples, 2, 2, channels)
        channels_last.statistics(x, partials)
        channels_last.channel_sums(x, partials)
        residual.residual_add(x, x, None, weight, 1.0, x, partials)
        residual.residual_add(x, x, x, None, 2.0, x, partials)
        for second, added, gradient in [(partials, add, weight), (None, None, None)]:
            table = torch.ones(samples, 4, channels if second is None else len(weight))
            group_norm.coefficients(partials, second, added, groups, 1e-5, 256, table)
            norm = group_norm.Normalisation(table, weight, weight, True, 0.0, None)
            group_norm_backward.combine(partials, norm, groups, 256, table, added)
            channels_last.column_sums(table, weight, gradient)
        for silu, seed in [(True, None), (False, None), (True, torch.ones(1, dtype=torch.int64))]:
            if silu or not rare:
                norm = group_norm.Normalisation(partials, weight, weight, silu, 0.1, seed)
                group_norm.apply(skip, channels, norm, y)
                group_norm_backward.sums(skip, channels, y, norm, partials)
                for shortcut in (None, skip):
                    group_norm_backward.apply(skip, channels, y, shortcut, norm, partials, skip)


def run_launchers_of_long_chunks() -> None:
    """Those whose programs take two or four parts: of many images, here without memory."""
    for size, parameter in itertools.product((16, 32), (FP32, BF16)):
        x, y = (torch.ones(1, 1, 1, 1, dtype=BF16).expand(256, c, size, size) for c in (128, 192))
        partials, weight = torch.ones(256, 2, 2, 128), torch.ones(192, dtype=parameter)
        channels_last.statistics(x, partials)
        channels_last.channel_sums(x, partials)
        residual.residual_add(x, x, x, None, 2.0, x, partials)
        residual.residual_add(x, x, None, weight, 1.0, x, partials)
        for seed in (None, torch.ones(1, dtype=torch.int64)):
            norm = group_norm.Normalisation(partials, weight, weight, True, 0.1, seed)
            group_norm.apply(x, 0, norm, y)
            group_norm_backward.sums(x, 0, y, norm, partials)
            group_norm_backward.apply(x, 0, y, x, norm, partials, x)
    of_samples, table = torch.ones(256, 1, 2, 256), torch.ones(256, 4, 256)
    add = torch.ones(256, 256, dtype=BF16)
    group_norm.coefficients(of_samples, None, add, 32, 1e-5, 128, table)
    norm = norm._replace(weight=torch.ones(256))
    group_norm_backward.combine(of_samples, norm, 32, 128, table, add)


def kernels_defined() -> set[str]:
    """The names of all kernels in the package: what Triton compiles and is called *_kernel."""
    names = set()
    for module in pkgutil.iter_modules(pecker_fast.kernels.__path__):
        members = vars(importlib.import_module(f"pecker_fast.kernels.{module.name}"))
        names |= {name for name, member in members.items() if isinstance(member, JITFunction)}
    return {name for name in names if name.endswith("_kernel")}


class Variant:
    """One launch: a kernel with the types of its arguments and its options."""

    def __init__(self, kernel: JITFunction, args: tuple, kwargs: dict) -> None:
        options = {k: kwargs.pop(k) for k in [*kwargs] if k not in kernel.arg_names}
        options.pop("grid"), options.pop("warmup")
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
        self.kernel, self.options = kernel, options
        self.signature, self.constants, self.attributes = {}, {}, {}
        for index, param in enumerate(kernel.params):
            value = bound[param.name]
            if param.is_constexpr or value is None:
                self.signature[param.name] = "constexpr"
                self.constants[param.name] = value
            elif isinstance(value, torch.Tensor):
                self.signature[param.name] = POINTERS[value.dtype]
                self.attributes[(index,)] = [["tt.divisibility", 16]]
            elif param.annotation_type:
                self.signature[param.name] = param.annotation_type
            else:
                assert isinstance(value, int), param.name
                self.signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
                if not param.do_not_specialize:  # a size: 16 divides it in every network
                    assert value % 16 == 0, param.name
                    self.attributes[(index,)] = [["tt.divisibility", 16]]

    @property
    def name(self) -> str:
        values = [str(v) for k, v in self.constants.items() if k.isupper()]
        flags = [k for k, v in self.signature.items() if k.endswith(("inf_ptr", "scale_ptr"))]
        given = [k for k in flags if self.signature[k] != "constexpr"]
        return " ".join([self.kernel.fn.__name__, *values, *given, *self.types])

    @property
    def types(self) -> list[str]:
        """Of the tensors, where the launcher takes them from these."""
        if not self.of_blocks:
            return []
        pointers = [v for k, v in self.signature.items() if k.endswith("_ptr")]
        return ["none" if v == "constexpr" else v.lstrip("*") for v in pointers]

    @property
    def of_blocks(self) -> bool:
        """Of the kernels of the U-Net's blocks."""
        return self.kernel.fn.__module__.rpartition(".")[2] in BLOCKS

    def compile(self, capability: int) -> dict:
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        target = GPUTarget("cuda", capability, 32)
        binary = triton.compile(source, target=target, options=self.options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary.asm["cubin"])
            file.flush()
            command = [CUOBJDUMP, "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True)
            instructions, repeated = _instructions(file.name) if self.of_blocks else (None, None)
        numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr))
        ptx = binary.asm["ptx"]
        return {
            "name": self.name,
            "of_blocks": self.of_blocks,
            "parts": self.constants.get("PARTS", 1),
            "warps": self.options["num_warps"],
            "capability": capability,
            **{key: int(value) for key, value in numbers.items()},
            "instructions": instructions,
            "repeated": repeated,
            "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", ptx)),
            "wide_stores": len(re.findall(r"st\.global\S*\.v4\.b32|st\.global\S*\.v2\.b64", ptx)),
            "ordered_atomics": sorted(set(re.findall(r"\batom\S*acq_rel\S*", ptx))),
            "forbidden": sorted(set(re.findall(FORBIDDEN, ptx))),
        }


def _instructions(cubin: str) -> tuple[int, int]:
    """How many the one kernel of a file has, and how many of them are in a loop."""
    command = [CUOBJDUMP, "-sass", cubin]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*);", listing, re.MULTILINE)
    found = [(int(place, 16), text) for place, text in lines if not text.startswith("NOP")]
    jumps = [(int(m[1], 16), at) for at, text in found if (m := re.search(r"BRA.* 0x(\w+)", text))]
    loops = [(to, at) for to, at in jumps if to < at]
    return len(found), sum(any(to <= at <= last for to, last in loops) for at, _ in found)


def main(capability: int, brief: bool) -> None:
    variants: dict[str, Variant] = {}

    def record(kernel: JITFunction, *args: object, **kwargs: object) -> None:
        variant = Variant(kernel, args, kwargs)
        variants[variant.name] = variant

    JITFunction.run = record
    run_launchers(brief)
    run_launchers_of_blocks(brief)
    run_launchers_of_long_chunks()
    missing = kernels_defined() - {variant.kernel.fn.__name__ for variant in variants.values()}
    if missing:
        raise SystemExit(f"no launch of {sorted(missing)}: add one to run_launchers")
    for variant in variants.values():
        print(json.dumps(variant.compile(capability)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), "--brief" in sys.argv)
