"""A layer is not lost without a word: tools that lose it are stopped, or found out afterwards."""

import copy
import importlib
import pickle
import re
import warnings
from collections.abc import Callable

import foreign
import pytest
import timm
import torch
from models import shake
from timm.layers import BatchNormAct2d
from torch import nn

import rbnorm
import rbnorm.export
from rbnorm.layers import guard


def converted() -> nn.Sequential:
    """Layers with and without parameters of their own, and a norm-act layer, at two depths."""
    inner = nn.Sequential(nn.BatchNorm2d(4, affine=False), BatchNormAct2d(4))
    return rbnorm.convert_batchnorm(shake(nn.Sequential(nn.Conv2d(2, 4, 1), *bn(), inner)))


def bn() -> list[nn.Module]:
    return [nn.BatchNorm2d(4), nn.ReLU()]


NAMES = ["1", "3.0", "3.1"]
IMAGE = torch.randn(3, 2, 5, 5)


def fuse_linear(model: nn.Module) -> nn.Module:
    norm = rbnorm.RepresentativeBatchNorm1d(2).eval()
    return nn.utils.fuse_linear_bn_eval(nn.Linear(2, 2).eval(), norm)


def first_two(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model[0].eval(), model[1].eval()


FOLD = "rbnorm.export.fold(model, inputs) fuses what can be fused"
REVERT = "rbnorm.revert_batchnorm(model, inputs) makes BatchNorm of it and tells what that loses"
REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "torch sync": (
        nn.SyncBatchNorm.convert_sync_batchnorm,
        "convert_sync_batchnorm of torch knows only BatchNorm and would lose the calibration of "
        "an RBN layer; use rbnorm.convert_sync(model)",
    ),
    "torch fuse": (lambda model: nn.utils.fuse_conv_bn_eval(*first_two(model)), FOLD),
    "torch fuse linear": (fuse_linear, "fuse_linear_bn_eval of torch knows only BatchNorm"),
    "timm sync": (timm.layers.convert_sync_batchnorm, "use rbnorm.convert_sync(model)"),
    "timm freeze": (timm.layers.freeze_batch_norm_2d, "use rbnorm.freeze(model)"),
    "timm freeze all": (timm.utils.freeze, "use rbnorm.freeze(model)"),
    "timm split": (timm.layers.convert_splitbn_model, "leave the batch in one piece"),
    "weights": (lambda model: foreign.absorb(*first_two(model)), "absorb of foreign knows"),
    "branch": (lambda model: foreign.Branch(*first_two(model)).kernel(), REVERT),
    "not called": (lambda model: foreign.at_once(model[1], model[0](IMAGE)), REVERT),
    "constant": (foreign.constant, REVERT),
    "slimmed": (lambda model: foreign.slimmed(model[1], torch.tensor([1, 0, 1, 1]) > 0), REVERT),
    "written": (lambda model: foreign.written(model[1]), REVERT),
    "by name": (lambda model: foreign.rebuilt(model[1]), REVERT),
}


@pytest.mark.parametrize("tool", REFUSED)
def test_tool_that_would_lose_the_calibration_is_refused(tool: str) -> None:
    """And nothing has changed."""
    model = converted()
    before = copy.deepcopy(model.state_dict())
    run, message = REFUSED[tool]
    for _ in range(2):  # not the first time alone
        with pytest.raises(ValueError, match=re.escape(message)):
            run(model)
    assert rbnorm.assert_intact(model) == NAMES
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mkldnn_is_refused() -> None:
    with warnings.catch_warnings():  # its import warns of torch.jit
        warnings.simplefilter("ignore", FutureWarning)
        to_mkldnn = importlib.import_module("torch.utils.mkldnn").to_mkldnn
        with pytest.raises(ValueError, match=r"of torch knows only BatchNorm"):
            to_mkldnn(converted().eval())


REPARAMETERISED = ("mobileone_s0", "repvgg_a0", "repvit_m0_9", "levit_128s", "fastvit_t8")


@pytest.mark.parametrize("name", [*REPARAMETERISED, "repghostnet_050"])
def test_timm_does_not_reparameterise(name: str) -> None:
    model = rbnorm.convert_batchnorm(timm.create_model(name)).eval()
    with pytest.raises(ValueError, match=r"of timm knows only BatchNorm.*can be fused"):
        timm.utils.reparameterize_model(model)
    assert rbnorm.assert_intact(model)


def test_other_uses_of_the_statistics_pass() -> None:
    """What estimates, resets, prints and knows RBN; also where BatchNorm has no attribute."""
    layer = converted()[1].eval()
    mean, var, momentum = foreign.statistics(layer)
    assert (mean is layer._buffers["running_mean"], momentum) == (True, 0.1)
    assert len(repr([layer.running_mean, layer.weight, layer.eps, layer.bias, var])) > 0
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(foreign.formula(layer, x), layer(x))
    layer.reset_running_stats()
    assert not layer.running_mean.any()
    compiled = torch.compile(lambda x: x + layer.running_mean[:, None, None], fullgraph=True)
    assert torch.equal(compiled(x), x)


def plotted(layer: nn.Module) -> list[list[float]]:
    """Looks at what BatchNorm is made of, and makes nothing of it."""
    vectors = layer.running_mean, layer.running_var + layer.eps, layer.weight, layer.bias
    return [vector.tolist() for vector in vectors]


def test_who_only_looks_may_say_so() -> None:
    """And the other layers are guarded as before."""
    first, second = (rbnorm.RepresentativeBatchNorm2d(2) for _ in range(2))
    with pytest.raises(
        ValueError, match=r"plotted of .*; where it only looks, set layer\.guarded = "
    ):
        plotted(first)
    first.guarded = False
    assert plotted(first) == plotted(nn.BatchNorm2d(2))
    assert plotted(copy.deepcopy(first)) == plotted(first)
    with pytest.raises(ValueError, match=r"plotted of .* knows only BatchNorm"):
        plotted(second)


def test_what_is_remembered_of_functions_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MANY", 3)
    layer = rbnorm.RepresentativeBatchNorm2d(2)
    for i in range(9):  # each a function of its own
        assert eval(f"layer.running_mean[0] + {i}", {"layer": layer}) == i
        assert 1 <= len(guard._harmless) <= 3


def test_the_running_mean_is_an_attribute_like_batchnorms() -> None:
    """Deleted, set again as a plain attribute, and missed."""
    for layer in (nn.BatchNorm2d(4), rbnorm.RepresentativeBatchNorm2d(4)):
        del layer.running_mean
        assert not hasattr(layer, "running_mean")
        layer.running_mean = torch.ones(4)
        assert layer.running_mean.all()
        del layer.running_mean
        with pytest.raises(AttributeError, match="has no attribute 'running_mean'"):
            _ = layer.running_mean
        layer.register_buffer("running_mean", torch.zeros(4))
        assert not layer.running_mean.any()


def test_a_reverted_model_is_everybodys() -> None:
    model = converted()
    x = torch.randn(3, 2, 5, 5)
    rbnorm.revert_batchnorm(model, x)
    expected = model.eval()(x)
    model = timm.layers.convert_sync_batchnorm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    assert rbnorm.assert_intact(model) == []
    torch.testing.assert_close(model.eval()(x), expected)


def swap(module: nn.Module, kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A converter as many libraries have one."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return kind(module)
    for name, child in module.named_children():
        setattr(module, name, swap(child, kind))
    return module


def with_the_tensors(layer: nn.Module) -> nn.Module:
    layer.guarded = False
    new = nn.BatchNorm2d(layer.num_features, affine=layer.affine)
    if layer.affine:
        new.weight, new.bias = layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    return new


def with_the_memory(layer: nn.Module) -> nn.Module:
    new = nn.SyncBatchNorm(layer.num_features)
    new.running_mean.data = layer.running_mean.data
    return new


def of_another_class(layer: nn.Module) -> nn.Module:
    assert layer.running_mean is not None
    layer.__class__ = nn.BatchNorm2d
    return layer


@pytest.mark.parametrize("kind", [with_the_tensors, with_the_memory, of_another_class])
def test_lost_layers_are_named(kind: Callable[[nn.Module], nn.Module]) -> None:
    """In a copy, on its own or in another model, also where a whole part is gone."""
    model = swap(nn.Sequential(copy.deepcopy(converted())), kind)
    del model[0][3][1]
    found = type(model[0][1]).__name__
    lost = f"lost: '0.1' by {found}, '0.3.0' by {found}, '0.3.1' by nothing"
    with pytest.raises(ValueError, match=re.escape(lost)):
        rbnorm.assert_intact(model)
    assert rbnorm.assert_intact(model, []) == []
    assert rbnorm.assert_intact(model[0], []) == []
    assert rbnorm.assert_intact(model) == []


def test_a_model_remembers_from_the_first_look_on_and_a_new_one_is_told() -> None:
    model = nn.Sequential(rbnorm.RepresentativeBatchNorm2d(4))
    names = rbnorm.assert_intact(model)
    model[0] = nn.BatchNorm2d(4)
    new = nn.Sequential(*model)
    assert rbnorm.assert_intact(new) == []
    for arguments in ((model,), (new, names)):
        with pytest.raises(ValueError, match="'0' by BatchNorm2d"):
            rbnorm.assert_intact(*arguments)


@pytest.mark.parametrize("loop", [foreign.initialise, lambda m: [p.reset_parameters() for p in m]])
def test_initialisation_after_conversion_is_named(loop: Callable[[nn.Module], object]) -> None:
    """It changes the function by 1 - R(1), 27 %; before conversion it does not."""
    model = rbnorm.convert_batchnorm(nn.Sequential(*bn()[:1]))
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    loop(model)
    torch.testing.assert_close(model(x), expected * torch.tensor(1.0).sigmoid())
    with pytest.raises(ValueError, match=r"layers was set, .*: '0'; initialise the model before"):
        rbnorm.assert_intact(model)
    for preserve in (True, False):
        model = nn.Sequential(*bn())
        foreign.initialise(model)
        rbnorm.convert_batchnorm(model, preserve)
        assert rbnorm.assert_intact(model) == ["0"]


def around_one(model: nn.Module) -> None:
    """The initialisation of DCGAN."""
    for module in model.modules():
        if type(module).__name__.find("BatchNorm") != -1:
            nn.init.normal_(module.weight.data, 1.0, 0.02)
            nn.init.constant_(module.bias.data, 0)


def test_initialisation_to_any_values_is_named() -> None:
    """By copies too; what training, freezing and checkpoints do to gamma is something else."""
    model = rbnorm.convert_batchnorm(shake(nn.Sequential(*bn())))
    other = copy.deepcopy(model)
    around_one(other)
    with pytest.raises(ValueError, match="was set, which changes what the model computes: '0'"):
        rbnorm.assert_intact(other)
    other[0].preserved = False
    assert rbnorm.assert_intact(other) == ["0"]
    other.load_state_dict(model.state_dict())
    model(torch.randn(2, 4, 5, 5))
    around_one(model)  # from here on nothing tells it from training
    assert rbnorm.assert_intact(model) == ["0"]
    model = rbnorm.convert_batchnorm(nn.Sequential(*bn()))
    model.load_state_dict(shake(nn.Sequential(*bn())).state_dict())
    assert rbnorm.assert_intact(model) == ["0"]
    nn.init.zeros_(model[0].weight)
    assert rbnorm.assert_intact(model.half()) == ["0"]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_programs_have_their_models_layers() -> None:
    model, x = converted().eval(), IMAGE
    for program in (torch.jit.trace(model, x), torch.export.export(model, (x,)).module()):
        assert rbnorm.assert_intact(program) == NAMES
        assert rbnorm.assert_intact(program, NAMES) == NAMES
        assert rbnorm.assert_intact(nn.Sequential(program)) == [f"0.{name}" for name in NAMES]


def test_tensors_without_memory_do_not_disturb() -> None:
    model = converted()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_mkldnn(), requires_grad=False)
    model[1].weight = nn.Parameter(model[1].weight.detach().to_sparse())
    assert rbnorm.assert_intact(model) == NAMES
    with torch.device("meta"):
        assert rbnorm.assert_intact(converted()) == NAMES


def test_intact_models_pass() -> None:
    """What others may do with our tensors: share, copy, pickle, convert, fold and revert."""
    model = converted()
    shared = nn.BatchNorm2d(4)
    shared.running_mean = model[1].running_mean
    both = nn.Sequential(model, shared, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    assert len(rbnorm.assert_intact(both)) == 9
    assert rbnorm.assert_intact(rbnorm.convert_sync(model)) == NAMES
    rbnorm.revert_sync(model)
    assert rbnorm.assert_intact(rbnorm.export.fold(model, IMAGE).model) == ["3.0", "3.1"]
    assert rbnorm.assert_intact(model) == NAMES
    rbnorm.revert_batchnorm(model[3], torch.randn(2, 4, 5, 5))
    assert rbnorm.assert_intact(copy.deepcopy(model)) == ["1"]
    assert rbnorm.assert_intact(model) == ["1"]
    assert rbnorm.assert_intact(nn.Conv2d(2, 4, 1)) == []
