"""Other layers in the place of a model's BatchNorm, alone or together with its activation."""

from collections.abc import Callable, Iterable
from typing import Final

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm_lab.errors import UsageError, first_line

_RECTIFIERS: Final = ("relu", "relu6", "leakyrelu", "prelu", "elu", "celu", "selu")
_SMOOTH: Final = ("gelu", "silu", "swish", "mish", "hardswish", "hardmish")
_ACTIVATIONS: Final = frozenset((*_RECTIFIERS, *_SMOOTH))
"""Names of modules, functions and methods, in lower case and without underscores."""


def replace(
    model: nn.Module, make: Callable[[_BatchNorm], nn.Module], *, images: bool = False
) -> nn.Module:
    """Put ``make(layer)`` in the place of every BatchNorm, one for each even where it is shared.

    Args:
        model: The model, which is changed and returned.
        make: Makes the layer; gamma and beta of the BatchNorm become its own.
        images: Whether ``make`` only knows BatchNorm2d.

    Raises:
        UsageError: There is another BatchNorm than ``make`` knows.
    """
    made: dict[_BatchNorm, nn.Module] = {}
    if images:
        _check_images(model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, _BatchNorm):
                if child not in made:
                    made[child] = _instead(child, make(child), ("drop", "act"))
                parent._modules[name] = made[child]
    return model


def _check_images(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.BatchNorm2d):
            raise UsageError(f"this norm replaces BatchNorm2d, and the model has {layer!r}")


def _instead(layer: _BatchNorm, norm: nn.Module, after: Iterable[str]) -> nn.Module:
    """The norm with the layer's affine parameters, and what else timm's BatchNormAct2d does."""
    if layer.affine:
        norm.weight, norm.bias = layer.weight, layer.bias
    children = dict(layer.named_children())
    followers = [children[name] for name in after if _acts(children.get(name))]
    return nn.Sequential(norm, *followers) if followers else norm


def _acts(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def replace_with_activation(
    model: nn.Module, make: Callable[[_BatchNorm, bool], nn.Module]
) -> nn.Module:
    """Put ``make(layer, activated)`` in the place of every BatchNorm2d and of its activation.

    The activation is the only one that reads the BatchNorm: in timm's norm-act layer, or next in
    the graph that torch.fx traces, as a module, a function or a method. ``activated`` says whether
    there is one.

    Args:
        model: The model, which this takes apart.
        make: Makes the layer; gamma and beta of the BatchNorm become its own.

    Returns:
        A model of the same names and weights that runs the traced graph without the activations.

    Raises:
        UsageError: There is another BatchNorm than BatchNorm2d; the model cannot be traced; or a
            BatchNorm is used both with an activation and without.
    """
    _check_images(model)
    graph = _trace(model)
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), _BatchNorm):
            calls.setdefault(node.target, []).append(node)
    made = {name: _fused(model, name, nodes, make) for name, nodes in calls.items()}
    fused = fx.GraphModule(model, graph, type(model).__name__)
    for name, norm in made.items():
        fused.set_submodule(name, norm)
    return fused


class _Tracer(fx.Tracer):
    """Goes into the modules that hold a BatchNorm, and takes all others as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        parts = (part for part in m.modules() if part is not m)
        return not any(isinstance(part, _BatchNorm) for part in parts)


def _trace(model: nn.Module) -> fx.Graph:
    what = "this norm replaces activations too, and where they are"
    training = model.training
    try:
        evaluated, trained = (_Tracer().trace(model.train(mode)) for mode in (False, True))
    except Exception as error:  # a forward method may do anything
        raise UsageError(f"{what} torch.fx cannot trace ({first_line(error)})") from error
    finally:
        model.train(training)
    if str(evaluated) != str(trained):
        raise UsageError(f"{what} cannot be traced in a model that computes otherwise in training")
    return trained


def _fused(
    model: nn.Module,
    name: str,
    calls: Iterable[fx.Node],
    make: Callable[[_BatchNorm, bool], nn.Module],
) -> nn.Module:
    """What replaces a layer; the activations after its calls leave the graph."""
    layer = model.get_submodule(name)
    assert isinstance(layer, _BatchNorm)
    own = _acts(dict(layer.named_children()).get("act"))
    following = [] if own else [_activation_after(call, model) for call in calls]
    activations = [node for node in following if node is not None]
    if len(activations) not in (0, len(following)):
        raise UsageError(
            f"layer {name} is used with an activation and without, and can be only one"
        )
    for node in activations:
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)
    return _instead(layer, make(layer, own or bool(activations)), ("drop",))


def _activation_after(node: fx.Node, model: nn.Module) -> fx.Node | None:
    while len(node.users) == 1:
        (node,) = node.users
        kind = _kind(node, model)
        if kind in _ACTIVATIONS:
            return node
        if kind != "identity":
            return None
    return None


def _kind(node: fx.Node, model: nn.Module) -> str:
    target = node.target
    if node.op == "call_module":
        name = type(model.get_submodule(str(target))).__name__
    else:
        name = target if isinstance(target, str) else target.__name__
    return name.lower().replace("_", "")
