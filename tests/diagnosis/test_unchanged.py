"""What is given to ``diagnose`` and ``recalibrate`` besides good input, and what they leave."""

import gc
import math
import sys

import pytest
import torch
from models import left_as_found, shake, small
from torch import nn

import rbnorm


class Restless(nn.Module):
    """Draws random numbers, counts its calls, and trains one norm while the other is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("noise", None)
        self.second.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.noise = torch.rand(1)
        if not torch.isfinite(x).all():
            raise RuntimeError("this input is not finite.\nAnd more lines.")
        return self.second(self.first(self.conv(x)) * self.noise)


def test_the_model_is_left_as_it_was() -> None:
    model = Restless()
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    with left_as_found(model):
        rbnorm.diagnose(model, [torch.ones(3, 2, 5, 5), torch.zeros(2, 2, 5, 5)])
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers


@pytest.mark.parametrize("function", [rbnorm.diagnose, rbnorm.recalibrate])
def test_a_model_that_raises_is_named_and_restored(function) -> None:
    model = Restless()
    message = (
        r"^the model failed on batch 2, before its first normaliser \(this input is not finite\)$"
    )
    batches = [torch.ones(3, 2, 5, 5), torch.full((3, 2, 5, 5), math.nan)]
    with left_as_found(model), pytest.raises(RuntimeError, match=message) as caught:
        function(model, batches)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_model_that_raises_in_the_middle_says_after_which_layer() -> None:
    model = small()
    with pytest.raises(RuntimeError, match=r"batch 1, after layer '1' \("):
        rbnorm.diagnose(model, [torch.randn(2, 2, 9, 9)])


def test_data_that_raises_restores_the_model_too() -> None:
    model = Restless()

    def batches():
        yield torch.ones(3, 2, 5, 5)
        raise OSError("the disk is gone")

    with left_as_found(model), pytest.raises(OSError, match="the disk is gone"):
        rbnorm.diagnose(model, batches())


@pytest.mark.parametrize("function", [rbnorm.diagnose, rbnorm.recalibrate])
def test_bad_input_is_refused_in_one_sentence(function) -> None:
    with pytest.raises(ValueError, match="got ReLU without one"):
        function(nn.ReLU(), [torch.ones(2, 2)])
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        function(small(), [])
    with pytest.raises(RuntimeError, match=r"batch must be a tensor or .* got a mapping"):
        function(small(), [{"x": 1}])
    with pytest.raises(ValueError, match="on the meta device"):
        function(nn.BatchNorm2d(2, device="meta"), [])


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="layer '0' has no size yet"):
        rbnorm.diagnose(nn.Sequential(nn.LazyBatchNorm2d()), [torch.ones(2, 2, 3, 3)])


def test_a_layer_that_is_never_reached_has_a_row_of_its_own() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(2), rbnorm.RepresentativeBatchNorm2d(2)

        def forward(self, x):
            return self.used(input=x)

    result = rbnorm.diagnose(Odd(), [torch.randn(4, 2, 3, 3)], shifted=[torch.randn(4, 2, 3, 3)])
    assert result.unreached == ("unused",)
    assert result["unused"].instances == 0
    assert math.isnan(result["unused"]["mean_offset"])
    assert result.shifted.unreached == ("unused",)
    assert math.isfinite(result["used"]["mean_offset"])


def test_a_model_in_which_no_layer_is_reached_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 1 in the model got an instance"):
        rbnorm.diagnose(small(), [torch.randn(2, 2, 8, 8)], forward=lambda model, x: x)


def test_an_empty_batch_counts_for_nothing() -> None:
    x = torch.randn(4, 2, 3, 3)
    with_empty = rbnorm.diagnose(nn.BatchNorm2d(2), [x, x[:0]]).layers[0]
    assert with_empty.values == rbnorm.diagnose(nn.BatchNorm2d(2), [x]).layers[0].values


def test_activations_that_are_not_finite_are_counted_and_left_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, 3)
    bad = x.clone()
    bad[2, 0, 1, 1], bad[4, 1, 0, 0] = math.nan, math.inf
    found = rbnorm.diagnose(nn.BatchNorm2d(2), [bad[:3], bad[3:]]).layers[0]
    assert found.nonfinite == 2
    kept = [[0, 1, 3, 4, 5], [0, 1, 2, 3, 5]]
    for channel, rows in enumerate(kept):
        alone = rbnorm.diagnose(nn.BatchNorm2d(1), [x[rows, channel : channel + 1]]).layers[0]
        for name in ("mean_offset", "log_var_ratio", "between_share", "mean_above"):
            value = found.per_channel[name][channel].item()
            # float32 sums over other batches, in another order
            assert value == pytest.approx(alone.per_channel[name].item(), rel=1e-5, abs=1e-6)


def test_a_shared_module_counts_every_call() -> None:
    norm = shake(nn.BatchNorm2d(2))
    model = nn.Sequential(norm, norm)
    x = torch.randn(4, 2, 3, 3)
    result = rbnorm.diagnose(model, [x])
    assert [d.layer for d in result.layers] == ["0"]
    found = result["0"]
    assert (found.calls, found.instances) == (2, 8)
    both = torch.cat([x, norm.eval()(x).detach()])
    assert found.values == pytest.approx(rbnorm.diagnose(norm, [both]).layers[0].values)


def test_memory_grows_by_two_numbers_an_instance() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), rbnorm.RepresentativeBatchNorm2d(16))
    held = []

    def batches():
        for i in range(41):
            if i in (4, 40):
                gc.collect()
                tensors = (t for t in gc.get_objects() if type(t) is torch.Tensor)
                held.append(sum(t.numel() * t.element_size() for t in tensors))
            yield torch.full((512, 1, 4, 4), float(i))

    rbnorm.diagnose(model, batches())
    assert held[1] - held[0] == (40 - 4) * 512 * 2 * 8


def test_a_missing_pandas_is_named(monkeypatch) -> None:
    result = rbnorm.diagnose(nn.BatchNorm2d(2), [torch.randn(2, 2, 3, 3)])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame needs pandas: install it with pip install"):
        result.to_frame()


def test_a_layer_that_there_is_not_is_named() -> None:
    result = rbnorm.diagnose(nn.BatchNorm2d(2), [torch.randn(2, 2, 3, 3)])
    with pytest.raises(KeyError, match="no layer 'x'"):
        result["x"]
