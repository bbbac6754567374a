"""The Triton kernels compiled for GPUs that are not here: what the machine code looks like."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is installed on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import machine_code as ahead

from rbnorm.kernels.triton import evaluation, sweeps, tables
from rbnorm.kernels.triton.plan import plan

LAYOUTS = {"contiguous": ahead.CONTIGUOUS, "channels_last": ahead.CHANNELS_LAST}
BUILD = Path(__file__).parent.parent / "build" / "triton"


def sweep(name, layout, **options):
    variant = ahead.SWEEPS[name]
    return variant._replace(options={**variant.options, **LAYOUTS[layout], **options})


@pytest.fixture(autouse=True, scope="session")
def kernel_cache():
    """Kernels are compiled when they or the compiler have changed: Triton goes by the content."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(BUILD))
        yield


@pytest.mark.parametrize("target", ahead.TARGETS)
@pytest.mark.parametrize("name", ahead.SWEEPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sweep_moves_128_bits_and_does_not_spill(target, name, layout, dtype):
    compiled = ahead.build(sweep(name, layout), dtype, ahead.TARGETS[target], sweeps.CONFIGS[0])
    found = ahead.usage(compiled)
    assert found.spills == 0
    # So many 128-bit loads hold a tile of every tensor that is read; what is narrower are tables,
    # and the one value around which moments are taken.
    threads = ahead.TARGETS[target].warp_size * 4
    per_tensor = 2048 * (2 if dtype == "bf16" else 4) // (16 * threads)
    tensors = 1 + name.startswith("grad") + ("residual" in name)
    assert found.loads.get(128, 0) >= tensors * per_tensor
    assert found.loads.get(16, 0) <= 1
    if "affine" in name:
        assert set(found.stores) == {128}


@pytest.mark.parametrize("target", ahead.TARGETS)
@pytest.mark.parametrize("name", ahead.TABLES)
def test_table_kernel_does_not_spill(target, name):
    compiled = ahead.build(ahead.TABLES[name], "fp32", ahead.TARGETS[target], None)
    assert ahead.usage(compiled).spills == 0


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("name", ahead.WHOLE)
def test_evaluation_moves_128_bits_and_does_not_spill(target, name):
    found = ahead.usage(ahead.build(ahead.WHOLE[name], "fp32", ahead.TARGETS[target], None))
    assert found.spills == 0
    assert found.loads.get(128, 0) > 0
    assert set(found.stores) == {128}


@pytest.mark.parametrize("config", sweeps.CONFIGS[1:], ids=str)
@pytest.mark.parametrize("name", ["moments", "affine", "grad_moments", "grad_affine"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_configurations_hardly_spill(config, name, layout):
    for suffix in ("", ", residual, relu") if name != "moments" else ("",):
        compiled = ahead.build(sweep(name + suffix, layout), "fp32", ahead.TARGETS["sm_90"], config)
        found = ahead.usage(compiled)
        assert found.spills <= 16  # two registers: whether it pays is for the tuner to find
        assert found.loads.get(128, 0) > 0


@pytest.mark.parametrize(("side", "dtype"), [(14, "fp32"), (12, "bf16"), (20, "bf16")])
def test_alignment_below_16_values_is_used(side, dtype):
    """14 x 14 is a multiple of 4 values only, which are 128 bits of float32."""
    p = plan(32, 256, side * side, channels_last=False)
    for name in ("moments", "affine"):
        variant = sweep(name, "contiguous", **p.sweep._asdict())
        found = ahead.usage(ahead.build(variant, dtype, ahead.TARGETS["sm_90"], sweeps.CONFIGS[0]))
        assert found.loads.get(128, 0) > 0


@pytest.mark.parametrize("name", ahead.SWEEPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_offsets_into_data_are_64_bits(name, layout):
    compiled = ahead.build(sweep(name, layout), "bf16", ahead.TARGETS["sm_90"], sweeps.CONFIGS[0])
    pattern = r"tt\.addptr .* : tensor<[\dx]*!tt\.ptr<bf16>>, tensor<[\dx]*(i\d+)>"
    widths = re.findall(pattern, compiled.asm["ttir"])
    assert widths
    assert set(widths) == {"i64"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_results_are_rounded_to_nearest(layout):
    """The interpreter truncates to bfloat16, so what the device does is read here."""
    compiled = ahead.build(
        sweep("affine", layout), "bf16", ahead.TARGETS["sm_90"], sweeps.CONFIGS[0]
    )
    roundings = set(re.findall(r"\bcvt\.(\w+)\.(?:\w+\.)*bf16(?:x2)?\.f32", compiled.asm["ptx"]))
    assert roundings == {"rn"}


@pytest.mark.parametrize("name", [*ahead.SWEEPS, *ahead.TABLES])
def test_no_atomics(name):
    variant = ahead.TABLES.get(name) or sweep(name, "contiguous")
    config = sweeps.CONFIGS[0] if name in ahead.SWEEPS else None
    ptx = ahead.build(variant, "fp32", ahead.TARGETS["sm_90"], config).asm["ptx"]
    assert not re.search(r"\b(atom|red)\.", ptx)


# The interpreter does not check types: every branch goes through the compiler once.
@pytest.mark.parametrize("activation", range(5))
def test_every_option_compiles(activation):
    dtype, restrict = "fp64", (activation + 1) % 5
    target = ahead.TARGETS["sm_90"]
    for name in ("affine", "grad_moments", "grad_affine"):
        variant = sweep(f"{name}, residual, relu", "channels_last", ACTIVATION=activation)
        if name == "grad_moments":
            variant.options["RESTRICT"] = restrict
        ahead.build(variant, dtype, target, sweeps.CONFIGS[0])
    for name in ("table, forward", "table, backward"):
        for training in (True, False):
            variant = ahead.TABLES[name]
            options = {**variant.options, "RESTRICT": restrict, "TRAINING": training}
            ahead.build(variant._replace(options=options), dtype, target, None)


@pytest.mark.parametrize("training", [True, False])
def test_everything_optional_may_be_absent(training):
    optional = {"weight", "bias", "center_weight", "scale_weight", "scale_bias", "scale", "u"}
    optional |= {"dweight", "dbias", "dcenter_weight", "dscale_weight", "dscale_bias", "x_scale"}
    optional |= {"var", "running_mean", "running_var"} if training else {"var"}
    for name, variant in ahead.TABLES.items():
        gone = optional - {"scale", "var"} if "forward" in name else optional
        options = {**variant.options, "TRAINING": training}
        bare = variant._replace(absent=frozenset(gone), options=options)
        ahead.build(bare, "fp32", ahead.TARGETS["sm_90"], None)
    for gone in ({"x_scale"}, {"dx", "u", "x_scale"}, {"dresidual", "residual"}):
        variant = sweep("grad_affine, residual, relu", "contiguous")._replace(
            absent=frozenset(gone)
        )
        ahead.build(variant, "fp32", ahead.TARGETS["sm_90"], sweeps.CONFIGS[0])


@pytest.mark.parametrize("size", [1, 2**31])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extreme_sizes_compile(size, layout):
    """1 is a compile-time constant to the launcher, and a size beyond 32 bits another type."""
    target, ends = ahead.TARGETS["sm_90"], {"C": 1, "L": 1} if size == 1 else {}
    for name in ahead.SWEEPS:
        variant = sweep(name, layout, **ends)
        ahead.build(variant, "fp32", target, sweeps.CONFIGS[0], "i32" if size == 1 else "i64")
    for variant in ahead.TABLES.values():
        ends.pop("L", None)  # not specialised in a table kernel
        wide = variant._replace(options={**variant.options, **ends})
        ahead.build(wide, "fp32", target, None, "i32" if size == 1 else "i64")


@pytest.mark.parametrize("size", ["i32", "i64"])
@pytest.mark.parametrize("ends", [{}, {"C": 1}, {"L": 1}, {"C": 1, "L": 1}], ids=str)
def test_evaluation_compiles_at_extreme_sizes(ends, size):
    p = plan(3, ends.get("C", 5), ends.get("L", 7), channels_last=True)
    names = ("WIDTH", "ALIGN", "CHANNELS_LAST", "TILE", "HELD")
    options = {"RESTRICT": 1, "ACTIVATION": 4, **dict(zip(names, p.whole, strict=True)), **ends}
    for absent in (frozenset(), ahead.FRESH | ahead.PARAMETERS):
        variant = ahead.Variant(evaluation.evaluate, absent, options)
        ahead.build(variant, "fp64", ahead.TARGETS["sm_90"], None, size)


@pytest.mark.parametrize("chunks", [1, 128])
def test_merge_compiles(chunks):
    p = plan(8, 1, 4096 * chunks, channels_last=False)
    assert p.chunks == chunks
    for absent in (frozenset(), frozenset({"var", "v"})):
        blocks = dict(zip(("BLOCK_N", "BLOCK_C", "BLOCK_J"), p.table, strict=True))
        variant = ahead.Variant(tables.merge, absent, {**blocks, "num_warps": p.table_warps})
        ahead.usage(ahead.build(variant, "fp32", ahead.TARGETS["gfx942"], None))
