"""What ``diagnose`` reports, against the literal computation in float64 and planted shifts."""

import json
import math

import pytest
import timm
import torch
from literal import seen, statistics
from models import calibrate, norms, shake
from tolerances import TOLERANCE
from torch import nn

import rbnorm
from rbnorm.diagnosis.result import COLUMNS

LAYERS = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "BatchNorm3d": lambda: nn.BatchNorm3d(3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "BatchNormAct2d": lambda: timm.layers.BatchNormAct2d(3),
    "RepresentativeBatchNorm1d": lambda: rbnorm.RepresentativeBatchNorm1d(3),
    "RepresentativeBatchNorm2d": lambda: rbnorm.RepresentativeBatchNorm2d(3, restrict="tanh"),
    "RepresentativeBatchNorm3d": lambda: rbnorm.RepresentativeBatchNorm3d(3),
    "SyncRepresentativeBatchNorm": lambda: rbnorm.SyncRepresentativeBatchNorm(3),
    "RepresentativeBatchNormAct2d": lambda: rbnorm.RepresentativeBatchNormAct2d(3),
}
SHAPES = {"1d": (3, 7), "2d": (3, 5, 6), "3d": (3, 2, 3, 4)}


def make(kind: str) -> tuple[nn.Module, list[torch.Tensor]]:
    """A layer with parameters and buffers of its own, and uneven batches off its statistics."""
    torch.manual_seed(0)
    layer = calibrate(shake(LAYERS[kind]()))
    shape = SHAPES.get(kind[-2:] if kind[-1] == "d" else "2d") or SHAPES["2d"]
    batches = [
        torch.randn(n, *shape) * torch.rand(n, 3, *[1] * (len(shape) - 1)) * 3
        + torch.randn(n, 3, *[1] * (len(shape) - 1))
        for n in (4, 1, 6, 0, 5)
    ]
    return layer, batches


def assert_literal(found, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, values in expected.items():
        torch.testing.assert_close(
            found.per_channel[name], values.double(), rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_statistics_are_those_of_the_literal_computation(kind: str, dtype) -> None:
    layer, batches = make(kind)
    batches = [x.to(dtype) for x in batches]
    if dtype == torch.float64:
        layer.double()
    found = rbnorm.diagnose(nn.Sequential(layer), batches).layers[0]
    expected = statistics(layer, seen(layer, layer, batches))
    assert (found.layer, found.kind, found.instances, found.calls) == ("0", kind, 16, 5)
    tolerance = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    assert_literal(found, expected, tolerance)
    for name, values in expected.items():
        if name != "output_mean":
            assert found[name] == pytest.approx(values.mean().item(), rel=tolerance, abs=tolerance)
    spread = expected["output_mean"].std(correction=0).item()
    assert found["output_mean_std"] == pytest.approx(spread, rel=10 * tolerance)


@pytest.mark.parametrize("statistic", ["max", "min", "std"])
def test_other_statistics_of_an_instance(statistic: str) -> None:
    torch.manual_seed(0)
    layer = rbnorm.RepresentativeBatchNorm2d(3, statistic=statistic, dtype=torch.float64)
    calibrate(shake(layer))
    batches = [torch.randn(n, 3, 4, 5, dtype=torch.float64) for n in (3, 5)]
    found = rbnorm.diagnose(layer, batches).layers[0]
    assert_literal(found, statistics(layer, seen(layer, layer, batches)), 1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_deep_model_layer_by_layer(layout) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
    )
    rbnorm.convert_batchnorm(shake(model), where="4")
    calibrate(model).to(memory_format=layout)
    batches = [torch.randn(n, 2, 9, 9).contiguous(memory_format=layout) for n in (4, 7)]
    result = rbnorm.diagnose(model, batches)
    assert [layer.layer for layer in result.layers] == ["1", "4"]
    for layer in result.layers:
        module = model.get_submodule(layer.layer)
        assert_literal(layer, statistics(module, seen(model, module, batches)), 1e-4)


def test_how_the_data_comes_in_batches_changes_nothing() -> None:
    layer, batches = make("RepresentativeBatchNorm2d")
    x = torch.cat(batches)
    one, several = (rbnorm.diagnose(layer, x.split(size)) for size in (16, 3))
    for name, values in one.layers[0].per_channel.items():
        torch.testing.assert_close(several.layers[0].per_channel[name], values)


def test_a_large_mean_costs_no_accuracy() -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 2, 6, 6, dtype=torch.float64) + torch.randn(12, 2, 1, 1) + 1e3
    layer = nn.BatchNorm2d(2)
    layer.running_mean.fill_(1e3)
    expected = statistics(layer, x.flatten(2))
    found = rbnorm.diagnose(layer, [x.float()[:5], x.float()[5:]]).layers[0].per_channel
    for name in COLUMNS:
        torch.testing.assert_close(found[name], expected[name].double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "case", "step", "ratio"),
    [
        (lambda x: x + 2, "mean_above", 2, 0),
        (lambda x: x - 2, "mean_below", -2, 0),
        (lambda x: 3 * x, "var_above", 0, 2 * math.log(3)),
        (lambda x: x / 3, "var_below", 0, -2 * math.log(3)),
    ],
)
def test_a_planted_change_of_one_channel_is_found(change, case: str, step, ratio) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Identity(), nn.BatchNorm2d(4))
    clean = [torch.randn(16, 4, 8, 8) for _ in range(4)]

    def forward(module: nn.Module, batch: tuple[torch.Tensor, bool]) -> torch.Tensor:
        x, changed = batch
        x = module[0](x)
        if changed:
            x = x.clone()
            x[:, 2] = change(x[:, 2])
        return module[2](x)

    batches = [[(x, changed) for x in clean] for changed in (False, True)]
    result = rbnorm.diagnose(model, batches[0], shifted=batches[1], forward=forward)
    assert result["0"].values == result.shifted["0"].values
    found, moved = result["2"].per_channel, result.shifted["2"].per_channel
    assert moved[case].tolist() == [0, 0, 1, 0]
    others = {"mean_above", "mean_below", "var_above", "var_below"} - {case}
    # three times as wide, the mean of an image is beyond the threshold now and then
    assert all(moved[name].sum() < (0.1 if step else 1) for name in others)
    for name, of in (("mean_offset", step), ("log_var_ratio", ratio)):
        difference = (moved[name] - found[name]).tolist()
        assert difference == pytest.approx([0, 0, of, 0], abs=0.15)


def test_regimes_of_the_centring() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(8)
    layer.center_weight.data = torch.tensor([-1.5, -1.0, -0.97, -0.5, -0.01, 0.0, 0.04, 0.3])
    found = rbnorm.diagnose(layer, [torch.randn(2, 8, 3, 3)]).layers[0]
    names = ("reverses", "removes", "damps", "neutral", "amplifies")
    assert [8 * found[f"center_{name}"] for name in names] == [1, 2, 1, 3, 1]


def test_centring_by_minus_one_leaves_nothing_between_instances() -> None:
    torch.manual_seed(0)
    layer = rbnorm.RepresentativeBatchNorm2d(2, center_weight_init=-1.0)
    x = torch.randn(9, 2, 5, 5) + torch.randn(9, 2, 1, 1)
    found = rbnorm.diagnose(layer, [x]).layers[0]
    assert found["between_share"] > 0.3
    assert found["between_share_centred"] == 0


def test_a_gate_that_could_be_absorbed_into_gamma_is_inert() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(2)
    layer.scale_weight.data[1] = 2.0
    x = torch.randn(6, 2, 1, 1) + torch.randn(6, 2, 5, 5)
    found = rbnorm.diagnose(layer, [x]).layers[0]
    assert found.per_channel["gate_inert"].tolist() == [1, 0]


def test_features_have_no_variance_of_one_position() -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 3)
    result = rbnorm.diagnose(shake(nn.BatchNorm1d(3)), [x])
    found = result.layers[0]
    assert result.to_dict()["layers"][0]["log_var_ratio"] is None
    assert all(math.isnan(found[name]) for name in ("log_var_ratio", "var_below", "var_above"))
    assert found["between_share"] == 1
    assert math.isfinite(found["mean_offset"])
    assert found.nonfinite == 0


def test_one_instance_has_no_share_between_instances() -> None:
    found = rbnorm.diagnose(nn.BatchNorm2d(2), [torch.randn(1, 2, 3, 3)]).layers[0]
    assert math.isnan(found["between_share"])
    assert found["mean_above"] + found["mean_below"] <= 1


def test_without_running_statistics_nothing_is_compared_with_them() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(2, track_running_stats=False)
    found = rbnorm.diagnose(layer, [torch.randn(4, 2, 3, 3)]).layers[0]
    assert all(math.isnan(found[name]) for name in COLUMNS if name != "between_share")
    assert 0 < found["between_share"] < 1


def test_the_table_has_one_row_per_layer_and_these_columns() -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    rbnorm.convert_batchnorm(model, where="layer4.*")
    result = rbnorm.diagnose(model, [torch.randn(2, 3, 32, 32)])
    frame = result.to_frame()
    assert list(frame.columns[:9]) == ["layer", "kind", *COLUMNS]
    assert list(frame["layer"]) == [n for n, m in model.named_modules() if m in norms(model)]
    assert frame["between_share"].tolist() == [layer["between_share"] for layer in result.layers]
    trained = frame[frame["kind"].str.startswith("Representative")]
    assert trained["center_weight"].notna().all()
    assert frame["center_weight"].notna().sum() == len(trained) > 0


def test_json_holds_the_channels(tmp_path) -> None:
    layer, batches = make("RepresentativeBatchNorm2d")
    result = rbnorm.diagnose(layer, batches, shifted=[batches[0] + 1])
    path = tmp_path / "diagnosis.json"
    result.to_json(path)
    read = json.loads(path.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["diagnosis.json"]
    for name, values in result.layers[0].per_channel.items():
        assert read["layers"][0]["per_channel"][name] == values.tolist()
    assert read["layers"][0]["mean_offset"] == result.layers[0]["mean_offset"]
    assert read["shifted"]["layers"][0]["mean_offset"] != read["layers"][0]["mean_offset"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_measured() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    x = torch.randn(4, 2, 6, 6)
    expected = rbnorm.diagnose(model, [x]).layers[0]
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)  # traced before there are hooks
    found = rbnorm.diagnose(compiled, [x]).layers[0]
    assert found.values == pytest.approx(expected.values, nan_ok=True)
