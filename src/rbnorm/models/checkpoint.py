"""State dicts converted layer by layer, without the model that they are of."""

from __future__ import annotations

from torch import nn

from rbnorm.layers.options import AFFINE, BUFFERS, NAMES
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.files import State


def convert_state(state: State) -> tuple[State, str]:
    """The state dict for rbnorm's layers, and what was done in words.

    Without any calibration every BatchNorm, which is what has ``running_mean`` and ``running_var``,
    becomes RBN of the same function, as with :func:`rbnorm.convert_batchnorm`. With one the RBN
    layers' vectors get the shape (C,), whatever they were, and nothing else changes.

    Raises:
        ValueError: It has neither BatchNorm nor RBN, or a layer's entries do not fit together; the
            sentence lacks its subject.
    """
    calibrated = _owners(state, NAMES)
    prefixes = calibrated or [p for p in _owners(state, BUFFERS[:1]) if f"{p}running_var" in state]
    if not prefixes:
        raise ValueError(
            "has neither BatchNorm nor RBN layers: no entry is named running_mean, running_var or "
            f"{', '.join(NAMES)}"
        )
    result = dict(state)
    for prefix in prefixes:
        names = (*AFFINE, *BUFFERS, *NAMES)
        own = {n: state[prefix + n].clone() for n in names if prefix + n in state}
        try:
            layer = _layer(own)
        except (RuntimeError, IndexError, ValueError) as error:
            said = " ".join(line.strip() for line in str(error).splitlines()[-1:])
            raise ValueError(
                f"has a layer {prefix.rstrip('.')!r} whose entries do not fit together "
                f"({said.rstrip('.')})"
            ) from error
        result |= {prefix + name: tensor for name, tensor in layer.state_dict().items()}
    if not calibrated:
        return result, f"{len(prefixes)} BatchNorm layers became RBN of the same function"
    reshaped = any(state[name].shape != result[name].shape for name in state)
    origin = "the official implementation's shapes" if reshaped else "rbnorm's own shapes already"
    return result, f"{len(prefixes)} RBN layers in {origin}"


def _owners(state: State, names: tuple[str, ...]) -> list[str]:
    """The prefix of every layer that has an entry of one of these names."""
    parts = (key.rpartition(".") for key in state)
    return list(dict.fromkeys(owner + dot for owner, dot, name in parts if name in names))


def _layer(own: State) -> nn.Module:
    """The RBN layer with these entries: its own, or a BatchNorm's, whose function it keeps."""
    layer = nn.BatchNorm2d(
        next(own[name] for name in (*NAMES, *BUFFERS) if name in own).numel(),
        affine="weight" in own,
        track_running_stats="running_mean" in own,
        device="meta",
    )
    if "bias" not in own:
        layer.register_parameter("bias", None)  # older torch has no argument for it
    calibrated = any(name in own for name in NAMES)
    if calibrated:
        scale = "scale_weight" in own or "scale_bias" in own
        convert_batchnorm(layer, False, center="center_weight" in own, scale=scale)
    layer.load_state_dict(own, assign=True)
    return layer if calibrated else convert_batchnorm(layer)
