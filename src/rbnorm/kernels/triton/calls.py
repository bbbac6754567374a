"""What calls with the same shapes share: checked, planned and compiled once, launched by address.

Triton's own launcher binds and inspects every argument of every launch, which took 22 us on the
host of an H200, where BatchNorm's whole forward pass takes 29. A call that comes again finds its
plan and its compiled kernels here, and hands over addresses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor
from triton import JITFunction

from rbnorm import elementwise
from rbnorm.kernels.phases import CHANNELS_LAST, DTYPES, Unfit, positions, table_dtype
from rbnorm.kernels.triton import elementwise as functions
from rbnorm.kernels.triton import sweeps
from rbnorm.kernels.triton.plan import Plan, plan
from rbnorm.kernels.triton.sweeps import Config

Others = ParamSpec("Others")
Output = TypeVar("Output")
Data = TypeVar("Data", Tensor, Tensor | None)

MOST = 4096
SMALL = 2**21  # values of a map that is tuned apart from larger ones
Handle = Tensor | int | None  # a tensor, or where its launcher is ready the address of one
Argument = Handle | float  # what kernels take
# The number of programs, and what Triton starts them by.
_Compiled = tuple[int, Callable[..., None], Callable[[int], int], object, object]
_tuned: dict[Hashable, Config] = {}
_IGNORED = (0, 0, 0, 0)  # in the place of what is compiled in

_WRONG = elementwise.mismatch("Triton's file", functions.RESTRICTIONS, functions.ACTIVATIONS)
if _WRONG:
    raise ImportError(_WRONG)


def _is_untimed() -> bool:
    """Whether nothing may be timed, or timing would choose the order of sums."""
    return (
        triton.knobs.runtime.interpret
        or torch.are_deterministic_algorithms_enabled()
        or torch.cuda.is_current_stream_capturing()
    )


def _fastest(kernel: JITFunction, p: Plan, arguments: tuple[Argument, ...]) -> Config:
    """Of the ways to compile a sweep that differ here."""
    different = {(p.options(config), config.warps): config for config in reversed(sweeps.CONFIGS)}
    if len(different) == 1:
        return sweeps.CONFIGS[0]

    def seconds(config: Config) -> float:
        def call() -> None:
            kernel[(p.programs(config),)](*arguments, *p.options(config), num_warps=config.warps)

        return float(triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median"))

    return min(different.values(), key=seconds)


class Launcher:
    """The kernels of an op for one set of options and absent arguments.

    Attributes:
        ready: Whether every kernel is compiled, and takes addresses in the place of tensors.
    """

    def __init__(self, device: int, sweep: tuple[Hashable, ...]) -> None:
        self.ready = False
        self._device, self._class = device, sweep
        self._compiled: dict[str, _Compiled] = {}

    def launch(self, kernel: JITFunction, programs: int, warps: int, *arguments: Argument) -> None:
        """Run a kernel."""
        if self.ready:
            programs, run, stream, function, metadata = self._compiled[kernel.__name__]
            run(
                programs, 1, 1, stream(self._device), function, metadata, None, None, None,
                *arguments,
            )  # fmt: skip
            return
        compiled = kernel[(programs,)](*arguments, num_warps=warps)
        if compiled is not None:  # as it is in the interpreter
            stream = triton.runtime.driver.active.get_current_stream
            handles = compiled.run, stream, compiled.function, compiled.packed_metadata
            self._compiled[kernel.__name__] = programs, *handles

    def sweep(self, kernel: JITFunction, p: Plan, *arguments: Argument) -> None:
        """Run a sweep, as it was the fastest for its class of sizes."""
        if self.ready:
            self.launch(kernel, 0, 0, *arguments, *_IGNORED)
            return
        key = (kernel.__name__, *self._class)
        config = _tuned.get(key, sweeps.CONFIGS[0])
        if key not in _tuned and not _is_untimed():
            config = _tuned[key] = _fastest(kernel, p, arguments)
        self.launch(kernel, p.programs(config), config.warps, *arguments, *p.options(config))

    def done(self) -> None:
        """Every kernel has been launched once: from now on, addresses."""
        self.ready = bool(self._compiled)


class Call:
    """What the calls for one kind of x share.

    Attributes:
        plan: How the shape is cut; None where there is not a single value.
        layout: Of all data: channels_last where x is so, contiguous elsewhere.
        table, vector, chunks: What ``torch.empty_like`` makes an (N, C) table, a (C,) vector, and
            a (chunks, N, C) table of; they hold a single number.
    """

    def __init__(self, x: Tensor) -> None:
        if x.ndim < 2 or x.dtype not in DTYPES:
            raise Unfit
        self.layout = torch.contiguous_format
        last = CHANNELS_LAST.get(x.ndim)
        if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
            self.layout = last
        N, C = x.shape[:2]
        is_last = self.layout != torch.contiguous_format
        self.plan = plan(N, C, positions(x), is_last) if x.numel() else None
        self._launchers: dict[Hashable, Launcher] = {}
        self._shape, self._dtype, self._device = x.shape, x.dtype, x.get_device()
        self._is_single = x.numel() == C
        self._bytes = x.nbytes if x.is_contiguous(memory_format=self.layout) else 0  # without gaps
        self._wide = table_dtype(x.dtype)
        self._one = one = torch.empty((), dtype=self._wide, device=x.device)
        self.table, self.vector = one.expand(N, C), one.expand(C)
        chunks = self.plan.chunks if self.plan else 1
        self.chunks = self.table if chunks == 1 else one.expand(chunks, N, C)
        self._slot = -(-chunks * N * C // 32) * 32  # a table of chunks, to a multiple of 128 bytes
        self._slots: dict[int, Tensor] = {}

    def check(
        self,
        x: Tensor,
        training: bool,
        eps: float,
        residual: Tensor | None,
        *vectors: Tensor | None,
    ) -> None:
        """Raise Unfit for what no kernel may meet: at little cost, in this order of vectors."""
        for v in vectors:
            if v is not None and (
                v.dtype is not self._wide
                or v.get_device() != self._device
                or v.shape != self.vector.shape
                or not v.is_contiguous()
            ):
                raise Unfit
        if residual is not None and (
            residual.dtype is not self._dtype
            or residual.get_device() != self._device
            or residual.shape != self._shape
        ):
            raise Unfit
        _, _, _, scale_weight, scale_bias, *_ = vectors
        if (scale_weight is None) is not (scale_bias is None):
            raise Unfit
        if training:  # what is written in place, and read after that
            begin = x.data_ptr()
            for v in vectors[5:]:
                if v is not None and begin - v.nbytes < v.data_ptr() < begin + self._bytes:
                    raise Unfit
        if not 0 <= eps < math.inf or (training and (eps == 0 or self._is_single)):
            raise Unfit

    def arranged(self, t: Data) -> Data:
        """x, or data beside it, in the layout of all."""
        if t is None or t.is_contiguous(memory_format=self.layout):
            return t
        return t.contiguous(memory_format=self.layout)

    def scratch(
        self, launcher: Launcher, count: int
    ) -> tuple[Tensor, Sequence[Tensor] | Sequence[int]]:
        """One allocation, to be held until the launches are made, for so many tables."""
        like = self._slots.get(count)
        if like is None:
            like = self._slots[count] = self._one.expand(count, self._slot)
        memory = torch.empty_like(like)
        if not launcher.ready:
            return memory, memory.unbind()
        first, step = memory.data_ptr(), self._slot * memory.itemsize
        return memory, range(first, first + count * step, step)

    def launcher(
        self, tensors: Sequence[Tensor | None], *options: Hashable
    ) -> tuple[Launcher, Sequence[Handle]]:
        """The launcher for these arguments, and the arguments as it takes them.

        Which are absent, and what 16 bytes do not align, is compiled into a kernel.
        """
        addresses = [None if t is None else t.data_ptr() for t in tensors]
        key = (*options, *[a and a & 15 for a in addresses])
        launcher = self._launchers.get(key)
        if launcher is None:
            assert self.plan is not None
            width, _, last = self.plan.sweep
            small = self._shape.numel() < SMALL
            launcher = Launcher(self._device, (self._dtype, width, last, small))
            self._launchers[key] = launcher
        return launcher, addresses if launcher.ready else tensors


_calls: dict[Hashable, Call] = {}


def call_of(x: Tensor) -> Call:
    """The call for tensors like x."""
    key = (x.shape, x.stride(), x.dtype, x.get_device())
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= MOST:  # a stream of ever new sizes
            _calls.clear()
        call = _calls[key] = Call(x)
    return call


def on_device(
    op: Callable[Concatenate[Tensor, Others], Output],
) -> Callable[Concatenate[Tensor, Others], Output]:
    """An op whose launches go to the device of its first tensor, be it the current one or not."""

    @functools.wraps(op)
    def guarded(x: Tensor, /, *others: Others.args, **options: Others.kwargs) -> Output:
        if not x.is_cuda or x.get_device() == torch.cuda.current_device():
            return op(x, *others, **options)
        with torch.cuda.device(x.device):
            return op(x, *others, **options)

    return guarded
