"""Exported models: the numbers of eager mode in every runtime, from few operators."""

from ast import literal_eval
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from models import calibrate, converted, norms, relative, shake
from torch import Tensor, nn
from torch.export import Dim

import rbnorm
from rbnorm.export import OPSET, fold, to_onnx

# As the trial's, smaller, larger, odd; the graph was exported from the first.
SHAPES = [(2, 3, 64, 64), (1, 3, 48, 80), (5, 3, 65, 33)]
Run = Callable[[Tensor], Tensor]


class Exported(NamedTuple):
    model: nn.Module
    graph: object
    path: Path


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v3_small"])
def exported(request, tmp_path_factory) -> Exported:
    model = converted(request.param)
    x = torch.randn(SHAPES[0])
    program = to_onnx(fold(model, x).model, x)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    program.save(path)
    assert program.model.opset_imports == {"": OPSET}
    return Exported(model, program.model.graph, path)


def in_onnxruntime(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def in_openvino(path: Path) -> Run:
    # By itself it takes bfloat16 where the processor has it.
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", precise)
    return lambda x: torch.from_numpy(np.array(compiled(x.numpy())[0]))


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
@torch.no_grad()
def test_runtime_agrees_for_every_batch_and_image_size(exported: Exported, runtime) -> None:
    run = runtime(exported.path)
    torch.manual_seed(1)
    for shape in SHAPES:
        x = torch.randn(shape)
        assert relative(run(x), exported.model(x)) < 1e-5


def test_layer_is_one_reduction_and_nine_small_nodes(exported: Exported) -> None:
    layers: dict[str, Counter] = {}
    for node in exported.graph:
        kinds, names = (
            literal_eval(node.metadata_props[f"pkg.torch.onnx.{key}"])
            for key in ("class_hierarchy", "name_scopes")
        )
        if any(kind.endswith("FoldedRepresentativeBatchNorm") for kind in kinds):
            layers.setdefault(names[-2], Counter())[node.op_type] += 1
    assert len(layers) == len(norms(exported.model))
    for operators in layers.values():
        assert operators == {"ReduceMean": 1, "Mul": 4, "Add": 4, "Sigmoid": 1}


class Net(nn.Module):
    """A layer that folds, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.first = rbnorm.RepresentativeBatchNorm2d(8)
        self.second = rbnorm.RepresentativeBatchNormAct2d(8, act_layer=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.conv(x)).relu()
        return self.second(torch.cat([y[:, 4:], y[:, :4]], 1), residual=y)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return calibrate(shake(Net()))


def folded(net: nn.Module) -> nn.Module:
    report = fold(net, torch.randn(2, 3, 8, 8))
    assert [layer.into for layer in report.layers.values()] == ["conv", None]
    return report.model


def program(model: nn.Module) -> torch.export.ExportedProgram:
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(free,))


def assert_runs(run: Run, net: nn.Module) -> None:
    for shape in ((2, 3, 8, 8), (1, 3, 5, 9), (4, 3, 12, 6)):
        x = torch.randn(shape)
        assert relative(run(x), net(x)) < 1e-5


@pytest.mark.parametrize("make", [folded, lambda net: net])
@torch.no_grad()
def test_saved_program_agrees(net: nn.Module, make, tmp_path: Path) -> None:
    torch.export.save(program(make(net)), tmp_path / "net.pt2")
    assert_runs(torch.export.load(tmp_path / "net.pt2").module(), net)


@pytest.mark.parametrize("make", [folded, lambda net: net])
@torch.no_grad()
def test_aotinductor_package_agrees(net: nn.Module, make, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch._inductor.aoti_compile_and_package(program(make(net)), package_path=str(path))
    assert_runs(torch._inductor.aoti_load_package(str(path)), net)


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
@torch.no_grad()
def test_layers_export_without_folding_too(net: nn.Module, runtime, tmp_path: Path) -> None:
    to_onnx(net, torch.randn(2, 3, 8, 8)).save(tmp_path / "net.onnx")
    assert_runs(runtime(tmp_path / "net.onnx"), net)


@torch.no_grad()
def test_fixed_image_size(net: nn.Module, tmp_path: Path) -> None:
    model = nn.Sequential(net, nn.Flatten(), nn.Linear(8 * 8 * 8, 5)).eval()
    to_onnx(model, torch.randn(2, 3, 8, 8), spatial=False).save(tmp_path / "net.onnx")
    x = torch.randn(5, 3, 8, 8)
    assert relative(in_onnxruntime(tmp_path / "net.onnx")(x), model(x)) < 1e-5


def test_training_mode_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="must be in evaluation mode to be exported"):
        to_onnx(net.train(), torch.randn(2, 3, 8, 8))


def test_single_instance_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"at least 2 instances .* got shape \(1, 3, 8, 8\)"):
        to_onnx(net, torch.randn(1, 3, 8, 8))


# What one converter or another does not have: CoreML and pnnx, ncnn, LiteRT.
UNKNOWN = {"aten.addcmul", "aten.expand_as", "aten.mean.dtype"}


def operators(graph: torch.fx.Graph) -> set[str]:
    """The operators of an exported graph; a mean that is told its dtype is one of its own."""
    found = set()
    for node in graph.nodes:
        if node.op == "call_function":
            told = str(node.target) == "aten.mean.dim" and node.kwargs.get("dtype") is not None
            found.add("aten.mean.dtype" if told else str(node.target).rpartition(".")[0])
    return found


@pytest.mark.parametrize("make", [folded, lambda net: net])
def test_exported_graph_has_common_operators_alone(net: nn.Module, make) -> None:
    found = operators(program(make(net)).run_decompositions({}).graph)
    assert "aten.mean" in found
    assert not found & UNKNOWN


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("make", [folded, lambda net: net])
@torch.no_grad()
def test_traced_graph_has_common_operators_alone(net: nn.Module, make) -> None:
    traced = torch.jit.trace(make(net), torch.randn(2, 3, 8, 8))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::mean" in kinds
    assert not kinds & {"aten::addcmul", "aten::expand_as"}
