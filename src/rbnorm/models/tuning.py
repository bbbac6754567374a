"""What training does with the parameters and statistics of a model's RBN layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from rbnorm.layers.base import Model, _RepresentativeBatchNorm, rbn_layers
from rbnorm.layers.options import AFFINE, NAMES
from rbnorm.models.originals import originals

__all__ = ["freeze", "parameter_groups", "unfreeze"]


def freeze(
    model: Model,
    stats: bool = True,
    affine: bool = False,
    calibration: bool = False,
    others: bool = False,
) -> Model:
    """Freeze parts of a model with RBN layers, in place, until :func:`unfreeze`.

    ``freeze(model, affine=True, others=True)`` leaves the calibration alone to be trained.

    A layer with frozen statistics normalises by its running statistics in training too and never
    changes them, whatever ``model.train()`` or ``reset_running_stats()`` say; gradients flow as
    in evaluation. This is a plain attribute, ``layer.frozen_stats``: it is copied and pickled with
    the layer, is no part of ``state_dict()``, and the layer's ``training`` flag stays what it is.
    Frozen parameters have ``requires_grad=False``, those that a pruned or parametrised vector is
    made of too; wrap a model in :class:`torch.nn.parallel.DistributedDataParallel` afterwards.

    Args:
        model: Any module, or a single layer.
        stats: Freeze the running statistics.
        affine: Freeze ``weight`` and ``bias``.
        calibration: Freeze ``center_weight``, ``scale_weight`` and ``scale_bias``.
        others: Freeze every other parameter of the model. Statistics of layers that are not RBN
            are no parameters: put such layers into evaluation mode.

    Returns:
        ``model`` itself. What is False stays as it is.

    Raises:
        ValueError: There is no RBN layer, or one has no running statistics to freeze. Nothing has
            changed.
    """
    layers = rbn_layers(model)
    for name, layer in layers:
        if stats and layer.running_mean is None:
            raise ValueError(
                f"layer {name!r} has no running statistics to freeze; pass stats=False, or make it "
                "with track_running_stats=True"
            )
    return _set(model, True, stats, affine, calibration, others)


def unfreeze(
    model: Model,
    stats: bool = True,
    affine: bool = False,
    calibration: bool = False,
    others: bool = False,
) -> Model:
    """Undo :func:`freeze`, whose arguments these are, in place.

    Returns:
        ``model`` itself. What is False stays as it is.

    Raises:
        ValueError: There is no RBN layer.
    """
    return _set(model, False, stats, affine, calibration, others)


def _set(
    model: Model, frozen: bool, stats: bool, affine: bool, calibration: bool, others: bool
) -> Model:
    rest = set(model.parameters()) if others else set()
    for _, layer in rbn_layers(model):
        if stats:
            layer.frozen_stats = frozen
        for names, chosen in ((AFFINE, affine), (NAMES, calibration)):
            own = {parameter for name in names for parameter in originals(layer, name)}
            rest = rest | own if chosen else rest - own
    for parameter in rest:
        parameter.requires_grad_(not frozen)
    return model


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    *,
    affine: Mapping[str, object] | None = None,
    calibration: Mapping[str, object] | None = None,
) -> list[dict[str, object]]:
    """Parameters for an optimizer, with a group of its own for RBN's affine and calibration.

    The groups are, by their ``"name"``: ``decay``, the parameters with two axes or more;
    ``no_decay``, the biases and the other normalisers' parameters; ``affine``, RBN's ``weight``
    and ``bias``; ``calibration``, RBN's ``center_weight``, ``scale_weight`` and ``scale_bias``.
    Only ``decay`` has a weight decay other than 0, unless the options say so::

        groups = rbnorm.parameter_groups(model, 1e-4, calibration={"lr": 1e-3})
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    Args:
        model: Any module.
        weight_decay: Of the parameters with two axes or more.
        affine: More options of the group ``affine``, such as ``{"lr": 0.01}``.
        calibration: Likewise of the group ``calibration``.

    Returns:
        The groups in this order, without empty ones. Each parameter that requires a gradient is in
        exactly one.
    """
    own = {"affine": AFFINE, "calibration": NAMES}
    of: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, _RepresentativeBatchNorm):
            for group, names in own.items():
                of |= {id(p): group for name in names for p in originals(module, name)}
    options: dict[str, Mapping[str, object]] = {
        "decay": {"weight_decay": weight_decay},
        "no_decay": {},
        "affine": affine or {},
        "calibration": calibration or {},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in options}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = of.get(id(parameter), "decay" if parameter.ndim > 1 else "no_decay")
            members[name].append(parameter)
    return [
        {"params": members[name], "weight_decay": 0.0, **options[name], "name": name}
        for name in options
        if members[name]
    ]
