"""Exported training graphs that another tool switches to evaluation."""

import copy

import pytest
import torch
from models import trained
from torch import Tensor, nn
from torchao.quantization.pt2e import allow_exported_model_train_eval, move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

import rbnorm


def net(act: bool) -> nn.Module:
    torch.manual_seed(0)
    norm = trained(nn.BatchNorm2d(4))
    if act:
        norm = rbnorm.RepresentativeBatchNormAct2d(4, act_layer=nn.SiLU)
        nn.init.normal_(norm.center_weight)
        nn.init.normal_(norm.scale_weight)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Conv2d(4, 3, 1)).train()


def images(size: int) -> Tensor:
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("act", [False, True])
def test_training_graph_is_switched_to_evaluation(act: bool) -> None:
    model = net(act)
    sizes = ({0: torch.export.Dim("n", min=2)},)
    program = torch.export.export(model, (images(5),), dynamic_shapes=sizes).module()
    for x in (images(5), images(7)):
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    evaluated = copy.deepcopy(program)
    move_exported_model_to_eval(evaluated)
    torch.testing.assert_close(evaluated(images(6)), model.eval()(images(6)), rtol=1e-4, atol=1e-5)
    allow_exported_model_train_eval(program)
    program.eval()
    torch.testing.assert_close(program(images(6)), model(images(6)), rtol=1e-4, atol=1e-5)


def test_quantisation_aware_training_ends_in_evaluation() -> None:
    """An image's output does not depend on the others, and is near the float model's."""
    model = net(False)
    program = torch.export.export(model, (images(8),)).module()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(program, quantizer)
    for _ in range(3):
        prepared(images(8)).square().mean().backward()
    move_exported_model_to_eval(prepared)
    quantised = convert_pt2e(prepared)
    x = images(8)
    other = torch.cat([x[:1], 10 * x[1:]])
    assert torch.equal(quantised(x)[0], quantised(other)[0])
    model.eval()
    for _ in range(3):
        model.train()(x)
    expected = model.eval()(x)
    assert (quantised(x) - expected).abs().max() < 0.2 * expected.abs().max()
