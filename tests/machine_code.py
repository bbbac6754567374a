"""What compilers make of the kernels, read without a GPU: accesses, registers, memory, spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rbnorm.kernels.triton import evaluation, sweeps, tables
from rbnorm.kernels.triton.plan import Plan, plan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DATA = {"x", "dy", "residual", "y", "dx", "dresidual"}
SIZES = {"N", "C", "L", "chunk", "chunks"}
CONTIGUOUS = {"WIDTH": 4096, "ALIGN": 16, "CHANNELS_LAST": False}
CHANNELS_LAST = {"WIDTH": 64, "ALIGN": 16, "CHANNELS_LAST": True}


class Usage(NamedTuple):
    """Of one compiled kernel: registers of a thread, bytes of shared memory of a block, spills.

    ``loads`` and ``stores`` map the bits of one thread's global access to how often it occurs.
    ``spills`` are bytes of local memory on NVIDIA, spilled registers on AMD.
    """

    registers: int
    shared: int
    spills: int
    loads: Counter[int]
    stores: Counter[int]


class Variant(NamedTuple):
    """A kernel as it is launched: the arguments it goes without and its compile-time options."""

    kernel: Any
    absent: frozenset[str]
    options: dict[str, Any]


_RELU = {"ACTIVATION": 1}
_PLAIN = {"ACTIVATION": 0}
_COMPUTED = frozenset({"E", "V"})
PARAMETERS = frozenset({"weight", "bias", "center_weight", "scale_weight", "scale_bias"})
_BARE = frozenset({"residual", "scale", "shift"}) | _COMPUTED | PARAMETERS


def _table(p: Plan) -> dict[str, Any]:
    blocks = zip(("BLOCK_N", "BLOCK_C", "BLOCK_J"), p.table, strict=True)
    return {"TRAINING": True, "RESTRICT": 0, **dict(blocks), "num_warps": p.table_warps}


def _whole(p: Plan, **options: int) -> dict[str, Any]:
    assert p.whole is not None
    names = ("WIDTH", "ALIGN", "CHANNELS_LAST", "TILE", "HELD")
    chosen = dict(zip(names, p.whole, strict=True))
    return {"RESTRICT": 0, **options, **chosen, "num_warps": p.whole_warps}


SWEEPS = {
    "moments": Variant(sweeps.moments, frozenset(), {}),
    "mean": Variant(sweeps.moments, frozenset({"var"}), {}),
    "affine": Variant(sweeps.affine, frozenset({"residual"}), _PLAIN),
    "affine, residual, relu": Variant(sweeps.affine, frozenset(), _RELU),
    "grad_moments": Variant(sweeps.grad_moments, _BARE, {"RESTRICT": 0, **_PLAIN}),
    "grad_moments, residual, relu": Variant(
        sweeps.grad_moments, frozenset(), {"RESTRICT": 0, **_RELU}
    ),
    "grad_affine": Variant(
        sweeps.grad_affine, frozenset({"residual", "shift", "dresidual"}), _PLAIN
    ),
    "grad_affine, residual, relu": Variant(sweeps.grad_affine, frozenset(), _RELU),
}
TABLES = {
    f"table, {name}{size}": Variant(getattr(tables, name), frozenset(), _table(p))
    for name in ("forward", "backward")
    for size, p in (
        ("", plan(256, 64, 3136, False)),
        (", 128 chunks", plan(8, 1, 2**24, False)),
    )
}
FRESH = frozenset({"m", "E", "V", "residual"})
WHOLE = {
    f"evaluation, {side} x {side}, {layout}": Variant(
        evaluation.evaluate,
        FRESH,
        _whole(plan(32, C, side * side, layout != "contiguous"), **_PLAIN),
    )
    for C, side in ((256, 56), (512, 28), (1024, 14))
    for layout in ("contiguous", "channels_last")
}


def build(
    variant: Variant,
    dtype: str,
    target: GPUTarget,
    config: sweeps.Config | None,
    size: str = "i32",
) -> Any:
    """Compile for 128-bit aligned data of ``dtype``: "fp32", "bf16", "fp16" or "fp64".

    Where ``options["ALIGN"]`` is 16, the default, the compiler is told as at run time that 16
    divides C and L; where it is less, it has to see the alignment itself. ``size`` is the type of
    the sizes, "i64" from 2^31 on.
    """
    options = dict(variant.options)
    launch = {"num_warps": options.pop("num_warps", 4)}
    if config is not None:
        options["TILE"], launch["num_warps"] = config.tile, config.warps
    kernel = variant.kernel
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in options or name in variant.absent:
            signature[name] = "constexpr"
            constants[name] = options.get(name)
        elif name in SIZES:
            signature[name] = size
        else:
            table = "fp64" if dtype == "fp64" else "fp32"
            pointer = f"*{dtype if name in DATA else table}"
            signature[name] = parameter.annotation_type or pointer
        divisible = {"C", "L", "chunk"} if options.get("ALIGN", 16) == 16 else {"chunk"}
        seen = name in divisible and not parameter.do_not_specialize
        if signature[name].startswith("*") or (seen and name not in options):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launch)


def usage(compiled: Any) -> Usage:
    """Read a kernel that :func:`build` compiled."""
    if "amdgcn" in compiled.asm:
        return _amd(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _nvidia(compiled.asm["ptx"], compiled.asm["cubin"], compiled.metadata.shared)


def _nvidia(ptx: str, cubin: bytes, shared: int) -> Usage:
    def bits(match: re.Match[str]) -> int:
        return int(match[1] or 1) * int(match[2])

    access = r"{}\.global(?:\.L\w+::\w+)*(?:\.v(\d))?\.b(\d+)"
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    return Usage(
        numbers["REG"],
        shared + numbers["SHARED"],
        numbers["STACK"] + numbers["LOCAL"],
        Counter(map(bits, re.finditer(access.format("ld"), ptx))),
        Counter(map(bits, re.finditer(access.format("st"), ptx))),
    )


def _amd(text: str, shared: int) -> Usage:
    sizes = {"ubyte": 8, "ushort": 16, "short": 16, "short_d16": 16, "short_d16_hi": 16}
    access = r"(?:global|buffer)_{}_(dwordx?\d?|\w+)\b"

    def bits(match: re.Match[str]) -> int:
        dwords = match[1].removeprefix("dword").lstrip("x")
        return sizes.get(match[1]) or 32 * int(dwords or 1)

    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", text)
        assert match is not None, key
        return int(match[1])

    return Usage(
        number("vgpr_count"),
        shared,
        number("vgpr_spill_count") + number("sgpr_spill_count"),
        Counter(map(bits, re.finditer(access.format("load"), text))),
        Counter(map(bits, re.finditer(access.format("store"), text))),
    )
