"""Bad input: one sentence that names the argument, what was given, what is accepted; no change."""

import copy
import math
import re
from typing import Any

import pytest
import torch

import rbnorm
from rbnorm.elementwise import RESTRICTIONS
from rbnorm.functional import representative_batch_norm

CONSTRUCTOR = [
    ({"eps": -1e-5}, "eps must be a non-negative number, got -1e-05"),
    ({"eps": math.nan}, "eps must be a non-negative number, got nan"),
    ({"momentum": math.inf}, "momentum must be a finite number or None, got inf"),
    ({"momentum": math.nan}, "momentum must be a finite number or None, got nan"),
    (
        {"statistic": "median"},
        "statistic must be one of 'mean', 'max', 'min', 'std' or a callable, got 'median'",
    ),
    (
        {"restrict": "relu"},
        f"restrict must be one of {', '.join(map(repr, RESTRICTIONS))} or a callable, got 'relu'",
    ),
    ({"restrict": None}, "got None"),
    ({"statistic": 3}, "got 3"),
    ({"restrict": torch.nn.PReLU()}, "got PReLU(num_parameters=1) with parameters"),
    ({"scale_bias_init": math.inf}, "scale_bias_init must be a finite number, got inf"),
    ({"center_weight_init": math.nan}, "center_weight_init must be a finite number, got nan"),
]


@pytest.mark.parametrize(("options", "message"), CONSTRUCTOR)
def test_constructor(options: dict[str, Any], message: str) -> None:
    for make in (
        rbnorm.RepresentativeBatchNorm1d,
        rbnorm.RepresentativeBatchNorm3d,
        rbnorm.RepresentativeBatchNormAct2d,
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(4, **options)


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="statistics"):
        rbnorm.RepresentativeBatchNorm2d(4, statistics="mean")


X = torch.zeros(2, 3, 4, 4)
CALLS = [
    (torch.zeros(2, 3), ValueError, "expected 4D input (got 2D input)"),
    (torch.zeros(3), ValueError, "expected 4D input (got 1D input)"),
    (
        torch.zeros(2, 5, 4, 4),
        ValueError,
        "weight must have shape (5,) to match input of shape (2, 5, 4, 4), got (3,)",
    ),
    (
        X.int(),
        TypeError,
        "input must be float16, bfloat16, float32 or float64, got int32",
    ),
    (X.cfloat(), TypeError, "got complex64"),
    (X.bool(), TypeError, "got bool"),
    (torch.zeros(0, 5, 4, 4), ValueError, "weight must have shape (5,)"),
    (
        {"statistic": lambda x: x.mean((2, 3))},
        ValueError,
        "statistic must return a tensor that broadcasts against the shape (2, 3, 4, 4), got (2, 3)",
    ),
    ({"statistic": lambda x: x[None]}, ValueError, "got (1, 2, 3, 4, 4)"),
    ({"statistic": lambda x: 1.0}, TypeError, "statistic must return a tensor, got float"),
    (
        {"restrict": lambda s: s.sum()},
        ValueError,
        "restrict must return a tensor that has the shape (2, 3, 1, 1), got ()",
    ),
    (
        {"restrict": lambda s: s + 1j},
        TypeError,
        "restrict must return real floating numbers, got torch.complex64",
    ),
    ({"restrict": lambda s: None}, TypeError, "restrict must return a tensor, got NoneType"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), CALLS)
@pytest.mark.parametrize("training", [True, False])
def test_layer_call(wrong: Any, kind: type[Exception], message: str, training: bool) -> None:
    """With a wrong input, or with callables that return something wrong."""
    x, options = (X, wrong) if isinstance(wrong, dict) else (wrong, {})
    layer = rbnorm.RepresentativeBatchNorm2d(3, **options).train(training)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(kind, match=re.escape(message)):
        layer(x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


V = torch.ones(3)
FUNCTIONAL = [
    ({"eps": -1.0}, "eps must be non-negative and finite, got -1.0"),
    ({"eps": 0.0, "training": True}, "eps must be positive and finite in training, got 0.0"),
    ({"scale_weight": V}, "scale_weight and scale_bias must be given together"),
    ({"running_var": None}, "running_mean and running_var must be given together"),
    ({"running_mean": None, "running_var": None}, "must be given in evaluation, got None"),
    ({"center_weight": torch.ones(1, 3, 1, 1)}, "center_weight must have shape (3,)"),
    ({"running_mean": torch.ones(4)}, "running_mean must have shape (3,)"),
    ({"input": torch.zeros(3)}, "input must have shape (N, C, ...), got (3,)"),
    ({"statistic": "median"}, "statistic must be one of"),
    ({"restrict": "relu"}, "restrict must be one of"),
    ({"restrict": "relu", "input": X[:0], "training": True}, "restrict must be one of"),
    ({"momentum": math.nan, "training": True}, "momentum must be a finite number, got nan"),
    ({"eps": math.inf}, "eps must be non-negative and finite, got inf"),
    ({"weight": V.to("meta")}, "weight must be on the device of input, cpu, got meta"),
    (
        {"running_mean": V.clone().requires_grad_(), "training": True},
        "running_mean must not require a gradient in training, which changes it in place",
    ),
]


@pytest.mark.parametrize(("options", "message"), FUNCTIONAL)
def test_functional(options: dict[str, Any], message: str) -> None:
    mean, var = V.clone(), V.clone()
    arguments = {"input": X, "running_mean": mean, "running_var": var, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        representative_batch_norm(**arguments)
    assert torch.equal(mean, V)
    assert torch.equal(var, V)


NESTED = {
    "strided": lambda: torch.nested.nested_tensor([torch.ones(3, 5), torch.ones(3, 5)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(3, 5), torch.ones(2, 5)], layout=torch.jagged
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("training", [True, False])
def test_nested_tensor(kind: str, training: bool) -> None:
    layer = rbnorm.RepresentativeBatchNorm1d(3).train(training)
    with pytest.raises(TypeError, match="input must be a dense tensor, got a nested one"):
        layer(NESTED[kind]())
    assert layer.num_batches_tracked == 0


def test_one_axis_in_a_synchronised_layer() -> None:
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        rbnorm.SyncRepresentativeBatchNorm(3)(V)


def test_sparse_tensor() -> None:
    with pytest.raises(TypeError, match=r"a dense tensor, got one of layout torch\.sparse_coo"):
        rbnorm.RepresentativeBatchNorm1d(3)(torch.ones(2, 3, 4).to_sparse())


@pytest.mark.parametrize("backend", ["portable", rbnorm.backends()["cpu"].name])
@pytest.mark.parametrize("other", ["input", "residual", "weight", "running_var"])
def test_running_statistics_in_the_memory_of_what_is_read(backend: str, other: str) -> None:
    x = torch.randn(4, 3, 5)
    given = {"input": x, "residual": x.clone(), "weight": torch.ones(3)}
    given |= {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    given["running_mean"] = given[other].view(-1)[-3:]
    before = given["running_mean"].clone()
    sentence = f"^running_mean must not share memory with {other}, which is read after it changes"
    with rbnorm.use_backend(backend), pytest.raises(ValueError, match=sentence):
        representative_batch_norm(**given, training=True)
    assert torch.equal(given["running_mean"], before)


def test_integer_vector() -> None:
    with pytest.raises(TypeError, match=r"weight must be float16.* got int64"):
        representative_batch_norm(X, V, V, torch.ones(3, dtype=torch.long))


def test_unknown_option_of_a_conversion() -> None:
    message = "unknown option 'centre'; accepted are center, scale, statistic, restrict"
    with pytest.raises(TypeError, match=message):
        rbnorm.convert_batchnorm(torch.nn.BatchNorm2d(3), centre=False)


def test_momentum_spoilt_after_construction() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3)
    layer.momentum = math.inf
    with pytest.raises(ValueError, match="momentum must be a finite number, got inf"):
        layer(torch.randn(2, 3, 4, 4))
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.num_batches_tracked == 0
