"""Calls of phases and of the whole layer past the checks, with right arguments and wrong ones."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from cases import VECTORS, arrange
from tolerances import assert_close
from torch import Tensor

from rbnorm.elementwise import ACTIVATION_OF, RESTRICTION_OF
from rbnorm.engine import layer
from rbnorm.engine.call import Call, Options, Vectors
from rbnorm.kernels import Kernels, active, phases
from rbnorm.kernels.backends import PORTABLE
from rbnorm.kernels.phases import Unfit

PLAIN = (None, 0, 0.0)  # no residual, no activation
SWEEPS = phases.PHASES
RUNNING = ("running_mean", "running_var")
OPTIONS = ("eps", "restrict", "activation", "slope")
HEAD = ("x", "residual", *VECTORS, *RUNNING)
SAVED = ("dy", "x", "residual", "m", "E", "V", *VECTORS)
LAYER = {
    "forward": (*HEAD, "training", "momentum", *OPTIONS),
    "inference": (*HEAD, *OPTIONS),
    "backward": (*SAVED, "training", *OPTIONS, "want_dx", "want_dresidual"),
}
NAMES = LAYER | {op: tuple(inspect.signature(getattr(phases, op)).parameters) for op in SWEEPS}


class Direct:
    """The layer by a backend's kernels, what these do not take by plain PyTorch; and its phases."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self.kernels.phases, name)  # type: ignore[no-any-return]

    def _either(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with torch.no_grad():
            try:
                return function(self.kernels, *arguments)
            except Unfit:
                return function(PORTABLE, *arguments)

    def forward(self, x: Tensor, residual: Tensor | None, *rest: Any) -> Any:
        vectors, (mean, var, training, momentum, *options) = rest[:5], rest[5:]
        running = None if mean is None else (mean, var)
        call = Call(x, residual, Vectors(*vectors), running, training, momentum)
        return self._either(layer.normalise, call, Options(*options))[:4]

    def inference(self, x: Tensor, residual: Tensor | None, *rest: Any) -> Any:
        call = Call(x, residual, Vectors(*rest[:5]), rest[5:7], False, 0.0)
        return self._either(layer.output, call, Options(*rest[7:]))

    def backward(self, *arguments: Any) -> Any:
        head, vectors, (training, *rest) = arguments[:6], arguments[6:11], arguments[11:]
        given = *head, Vectors(*vectors), training, Options(*rest[:4]), None, None, *rest[4:]
        return self._either(layer.differentiate, *given)


ON: dict[str, Direct] = {"portable": Direct(PORTABLE)}
try:
    from rbnorm.kernels.cpu import calls as KERNELS
except ImportError:  # an installation without kernels
    KERNELS = None
else:
    ON["c++"] = Direct(active("cpu"))


def refuses(op: str, arguments: dict[str, Any]) -> bool:
    """Whether the C++ kernel itself does, before anything goes another way."""
    try:
        getattr(KERNELS, op).__wrapped__(*arguments.values())
    except (KERNELS._kernels.Refused, ValueError):  # the latter of an x without two axes
        return True
    return False


def inputs(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> Any:
    """x, dy, four (N, C) tables and a (C,) vector."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, dy = (arrange(torch.randn(shape).to(dtype), layout) for _ in range(2))
    return x, dy, *torch.randn(4, *shape[:2], dtype=wide).unbind(), torch.randn(shape[1]).to(wide)


def of_sweeps(
    x: Tensor, dy: Tensor, m: Tensor, a: Tensor, u: Tensor, b: Tensor, p: Tensor
) -> dict[str, Any]:
    """The arguments of every sweep, plain."""
    return {
        "mean": (x,),
        "moments": (x,),
        "affine": (x, m, a, b, *PLAIN),
        "grad_moments": (dy, x, m, None, None, *PLAIN),
        "grad_affine": (dy, x, m, a, None, p, u, *PLAIN, True, False),
    }


def arguments(name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Any:
    return of_sweeps(*inputs(shape, dtype, layout))[name]


def expected(name: str, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The definition in float64, with every table spread over the positions."""
    x = args[1] if name.startswith("grad") else args[0]
    flat = [t.double() for t in args if isinstance(t, Tensor)]
    view = [t if t.ndim == x.ndim else t.reshape(t.shape + (1,) * (x.ndim - 2)) for t in flat]
    axes = tuple(range(2, x.ndim))

    def total(t: Tensor) -> Tensor:
        return t.sum(axes) if axes else t

    L = x.shape[2:].numel()
    if name == "mean":
        return (total(view[0]) / L,)
    if name == "moments":
        m = total(view[0]) / L
        spread = m.reshape(m.shape + (1,) * len(axes))
        return m, total((view[0] - spread).square()) / L
    if name == "affine":
        return (view[2] * (view[0] - view[1]) + view[3],)
    if name == "grad_moments":
        return total(view[0]) / L, total(view[0] * (view[1] - view[2])) / L
    return (view[3] * view[0] + view[4] * (view[1] - view[2]) + view[5],)


def compare(
    kernels: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str
) -> None:
    """A sweep with its definition."""
    args = arguments(name, shape, dtype, layout)
    result = getattr(kernels, name)(*args)
    found = result if isinstance(result, tuple) else (result,)
    found = found[:1] if name == "grad_affine" else found
    big = "affine" in name
    for actual, wanted in zip(found, expected(name, args), strict=True):
        assert actual.dtype == (dtype if big else phases.table_dtype(dtype))
        assert_close(actual, wanted, actual.dtype, scale=8.0)


def layer_arguments(op: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Any:
    """By name, for a layer in training that has everything."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    big = {k: arrange(torch.randn(shape).to(dtype), layout) for k in ("x", "dy", "residual")}
    vectors = ("weight", "bias", "center_weight", "scale_weight", "scale_bias", "running_mean", "E")
    small = {k: torch.randn(shape[1]).to(wide) for k in vectors}
    positive = {k: torch.rand(shape[1]).to(wide) + 0.5 for k in ("running_var", "V")}
    options = {"training": True, "momentum": 0.1, "eps": 1e-3, "restrict": 0}
    tail = {"activation": 2, "slope": 0.1, "want_dx": True, "want_dresidual": True}
    given = {**big, **small, **positive, **options, **tail, "m": torch.randn(shape[:2]).to(wide)}
    return {name: given[name] for name in NAMES[op]}


def coherent(args: dict[str, Any]) -> dict[str, Any]:
    """``m``, ``E`` and ``V`` as ``forward`` gives them to ``backward`` with these arguments."""
    x, names = args["x"], ("residual", *VECTORS)
    if not args["training"]:
        return {"m": phases.mean(x)}
    options = (args[name] for name in OPTIONS)
    given = (args[name] for name in names)
    _, m, E, V = ON["portable"].forward(x, *given, None, None, True, 0.0, *options)
    return {"m": m, "E": E, "V": V}


def named(op: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> dict[str, Any]:
    """The arguments of any op, by name."""
    if op in LAYER:
        return layer_arguments(op, shape, dtype, layout)
    given = dict(zip(NAMES[op], arguments(op, shape, dtype, layout), strict=True))
    if "activation" in given:
        a, b = inputs(shape, dtype, layout)[3:5]
        residual = arrange(torch.randn(shape).to(dtype), layout)
        given |= {"scale": a, "shift": b, "residual": residual, "activation": 2, "slope": 0.1}
    return given | ({"want_dresidual": True} if "want_dresidual" in given else {})


def wrong(name: str, value: Any) -> list[Any]:
    """Values that must not be taken for this argument of an op, given a right one."""
    if name in {"restrict", "activation"}:
        codes = RESTRICTION_OF if name == "restrict" else ACTIVATION_OF
        return [-1, max(codes) + 1, 2**40]
    if not isinstance(value, Tensor):
        return []
    if name == "x":
        other = [value.to(dtype) for dtype in (torch.int32, torch.bool, torch.complex64)]
        return [*other, value.flatten(), value.sum()]
    shapes = [value[:1], value[..., :-1], value[..., None], value[:0], value.sum()]
    shapes += [torch.cat([value, value])]
    dtypes = [value.to(dtype) for dtype in (torch.half, torch.double, torch.int32)]
    return [
        *(v for v in shapes if v.shape != value.shape),
        *(v for v in dtypes if v.dtype != value.dtype),
        value.to("meta"),
    ]
