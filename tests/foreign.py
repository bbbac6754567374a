"""What other people's tools do with a BatchNorm, each in as few lines as it takes."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

STATE = ("weight", "bias", "running_mean", "running_var")


def absorb(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """The weights that a detector's convolution gets before it is deployed."""
    gain = norm.weight / torch.sqrt(norm.eps + norm.running_var)
    conv = copy.deepcopy(conv)
    conv.weight = nn.Parameter(conv.weight * gain[:, None, None, None])
    conv.bias = nn.Parameter(norm.bias + (conv.bias - norm.running_mean) * gain)
    return conv


class Branch(nn.Module):
    """A convolution and its BatchNorm, one of several that become one kernel."""

    def __init__(self, conv: nn.Conv2d, bn: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn

    def kernel(self) -> tuple[Tensor, Tensor]:
        mean, var = self.bn.running_mean, self.bn.running_var
        gain = self.bn.weight / (var + self.bn.eps).sqrt()
        return self.conv.weight * gain[:, None, None, None], self.bn.bias - mean * gain


def at_once(norm: nn.Module, x: Tensor) -> Tensor:
    """Evaluation in a function of the tool's own; the layer stays and is not called."""
    statistics = norm.running_mean, norm.running_var
    return nn.functional.batch_norm(x, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)


class Constant(nn.Module):
    """A BatchNorm of buffers, with an eps of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in STATE:
            self.register_buffer(name, torch.ones(size))


def constant(model: nn.Module) -> nn.Module:
    """Straight into the table of children."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            new = Constant(child.num_features)
            new.weight.copy_(child.weight)
            new.bias.copy_(child.bias)
            new.running_mean.copy_(child.running_mean)
            new.running_var.copy_(child.running_var)
            model._modules[name] = new
    return model


def rebuilt(norm: nn.Module) -> nn.Module:
    """Attributes by their names, in a comprehension."""
    new = nn.SyncBatchNorm(norm.num_features, norm.eps)
    new.load_state_dict({name: getattr(norm, name) for name in STATE}, strict=False)
    return new


def slimmed(norm: nn.Module, keep: Tensor) -> nn.Module:
    """Some channels of the layer in a new one; no size and no eps are read."""
    new = nn.BatchNorm2d(int(keep.sum()))
    new.weight.data = norm.weight.data[keep].clone()
    new.bias.data = norm.bias.data[keep].clone()
    new.running_mean = norm.running_mean[keep].clone()
    new.running_var = norm.running_var[keep].clone()
    return new


def written(norm: nn.Module) -> bytes:
    """As files of weights for another program have it."""
    vectors = norm.bias.data, norm.weight.data, norm.running_mean.data, norm.running_var.data
    return b"".join(vector.numpy().tobytes() for vector in vectors)


def statistics(norm: nn.Module) -> tuple[Tensor, Tensor, float]:
    """What estimates statistics anew reads."""
    return norm.running_mean, norm.running_var, norm.momentum


def initialise(model: nn.Module) -> None:
    """An initialisation loop that sets everything of a BatchNorm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
            nn.init.ones_(module.running_var)


def formula(norm: Any, x: Tensor) -> Tensor:
    """Evaluation by somebody who knows RBN."""
    column = (slice(None), None, None)
    z = x + norm.center_weight[column] * x.mean((2, 3), keepdim=True)
    o = (z - norm.running_mean[column]) / (norm.running_var + norm.eps).sqrt()[column]
    gate = norm.scale_weight[column] * o.mean((2, 3), keepdim=True) + norm.scale_bias[column]
    return norm.weight[column] * torch.sigmoid(gate) * o + norm.bias[column]
