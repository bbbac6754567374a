"""The identities of the original description, and the facts the documentation tells."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rbnorm
from rbnorm.definition import STATISTICS
from rbnorm.functional import representative_batch_norm

D = torch.float64


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(0)) * 2 + 3


def vectors(count: int, channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, channels, dtype=D, generator=generator).unbind())


def channel_mean(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).mean(1)


def test_mean_of_instance_means_is_the_batch_mean() -> None:
    """E(X) = E(K_m)."""
    x = data(4, 3, 5, 6)
    assert torch.allclose(channel_mean(STATISTICS["mean"](x)), channel_mean(x), rtol=0, atol=1e-14)


def test_mean_after_centring_calibration() -> None:
    """E(X_cm) = (1 + w_m) E(X), as the layer's running mean shows."""
    x, (w_m,) = data(4, 3, 5, 6), vectors(1, 3)
    mean, var = torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    representative_batch_norm(x, mean, var, training=True, momentum=1.0, center_weight=w_m)
    assert torch.allclose(mean, (1 + w_m) * channel_mean(x), rtol=0, atol=1e-13)


def test_difference_that_centring_makes() -> None:
    """X_cal - X_no = w_m (K_m - E(X)), before the division by the standard deviation."""
    x, (w_m,) = data(4, 3, 5, 6), vectors(1, 3)
    var = torch.zeros(3, dtype=D)
    centred = representative_batch_norm(
        x, (1 + w_m) * channel_mean(x), var + 1, eps=0.0, center_weight=w_m
    )
    plain = representative_batch_norm(x, channel_mean(x), var + 1, eps=0.0)
    expected = w_m.view(1, 3, 1, 1) * (STATISTICS["mean"](x) - channel_mean(x).view(1, 3, 1, 1))
    assert torch.allclose(centred - plain, expected.expand_as(x), rtol=0, atol=1e-13)


def test_scaling_calibration_shrinks_the_variance() -> None:
    """Var(X_cs) < Var(X_s) in training, where E(X_s) = 0 and R stays below some tau < 1."""
    x, (w_v, w_b) = data(4, 3, 5, 6), vectors(2, 3)
    plain = representative_batch_norm(x, None, None, training=True)
    scaled = representative_batch_norm(
        x, None, None, training=True, scale_weight=w_v, scale_bias=w_b
    )
    gate = torch.sigmoid(w_v.view(1, 3, 1, 1) * STATISTICS["mean"](plain) + w_b.view(1, 3, 1, 1))
    tau = gate.amax((0, 2, 3))
    assert (tau < 1).all()
    second_moment = [t.square().mean((0, 2, 3)) for t in (plain, scaled)]
    assert (second_moment[1] <= tau**2 * second_moment[0]).all()
    assert (scaled.var((0, 2, 3)) < plain.var((0, 2, 3))).all()


def test_scaling_calibration_can_raise_the_variance_in_evaluation() -> None:
    """Var(X_cs) > Var(X_s) where running statistics leave E(X_s) far from 0."""
    x = torch.tensor([10, 11], dtype=D).view(2, 1, 1, 1).expand(2, 1, 1, 2).contiguous()
    mean, var = torch.zeros(1, dtype=D), torch.ones(1, dtype=D)
    logit = torch.tensor([0.1, 0.9], dtype=D).logit()
    w_v = (logit[1] - logit[0]).view(1)  # gates of 0.1 and 0.9 at K(X_s) = 10 and 11
    w_b = (logit[0] - 10 * w_v[0]).view(1)
    plain = representative_batch_norm(x, mean, var, eps=0.0)
    scaled = representative_batch_norm(x, mean, var, eps=0.0, scale_weight=w_v, scale_bias=w_b)
    assert torch.allclose(scaled.flatten(), torch.tensor([1, 1, 9.9, 9.9], dtype=D), atol=1e-12)
    assert plain.var(correction=0).item() == pytest.approx(0.25)
    assert scaled.var(correction=0).item() == pytest.approx(19.8025)
    tau = torch.tensor(0.9, dtype=D)
    assert scaled.square().mean() <= tau**2 * plain.square().mean()
    assert plain.mean() ** 2 > (tau**-2 - 1) * plain.var(correction=0)  # the condition fails


@pytest.mark.parametrize("w_b", [0.0, 2.0, 4.0])
def test_initial_gate_sets_how_fast_the_scaling_learns(w_b: float) -> None:
    """With gamma / R(w_b) the gradients of w_v and w_b go with R'(w_b) / R(w_b), w_m's does not."""
    x, dy = data(4, 3, 5, 6), torch.cos(data(4, 3, 5, 6))

    def gradients(w_b: float) -> list[Tensor]:
        gate = torch.tensor(w_b, dtype=D).sigmoid()
        values = (torch.ones(3, dtype=D) / gate, torch.zeros(3, dtype=D), torch.zeros(3, dtype=D))
        gamma, w_m, w_v = (v.requires_grad_() for v in values)
        bias = torch.full((3,), w_b, dtype=D, requires_grad=True)
        y = representative_batch_norm(
            x, None, None, gamma, training=True, center_weight=w_m, scale_weight=w_v,
            scale_bias=bias,
        )  # fmt: skip
        return list(torch.autograd.grad((y * dy).sum(), (gamma, w_m, w_v, bias)))

    sigmoid = torch.tensor([w_b, 1.0], dtype=D).sigmoid()
    faster = (1 - sigmoid[0]) / (1 - sigmoid[1])  # R' / R of the sigmoid
    expected = (sigmoid[0] / sigmoid[1], 1.0, faster, faster)
    for got, of_one, factor in zip(gradients(w_b), gradients(1.0), expected, strict=True):
        assert torch.allclose(got, factor * of_one, rtol=1e-12, atol=1e-13)


def test_centre_weight_of_minus_one_removes_the_instance_mean() -> None:
    x = data(4, 3, 5, 6)
    y = representative_batch_norm(
        x, None, None, training=True, center_weight=-torch.ones(3, dtype=D)
    )
    assert y.mean((2, 3)).abs().max() < 1e-14


def test_single_instance_is_instance_norm_times_the_gate() -> None:
    x, (w_m, w_v, w_b) = data(1, 3, 5, 6), vectors(3, 3)
    options = {"center_weight": w_m, "scale_weight": w_v, "scale_bias": w_b}
    for vector in options.values():
        vector.requires_grad_()
    y = representative_batch_norm(x, None, None, training=True, **options)
    expected = torch.sigmoid(w_b).view(1, 3, 1, 1) * F.instance_norm(x)
    assert torch.allclose(y, expected, rtol=0, atol=1e-14)
    y.square().sum().backward()
    assert w_m.grad is not None
    assert w_v.grad is not None
    assert w_m.grad.abs().max() < 1e-14
    assert w_v.grad.abs().max() < 1e-14


def test_fresh_layer_is_batchnorm_times_sigmoid_of_one() -> None:
    x = data(4, 3, 5, 6)
    layer = rbnorm.RepresentativeBatchNorm2d(3, dtype=D)
    expected = F.batch_norm(x, None, None, training=True) * 0.7310585786300049
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-14)


def network(make: type[nn.Module], **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        make(6, **options),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        make(4, momentum=None, **options),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()


@pytest.mark.parametrize("absent", [True, False])
def test_neutral_layer_equals_batchnorm_over_a_training_run(absent: bool) -> None:
    """w_m = w_v = 0 and R = 1, by absence of the calibration or by frozen neutral parameters."""
    options = {"center": False, "scale": False} if absent else {"restrict": "identity"}
    ours = network(rbnorm.RepresentativeBatchNorm2d, **options)
    theirs = network(nn.BatchNorm2d)
    for name, parameter in ours.named_parameters():
        if name.split(".")[-1] in {"center_weight", "scale_weight", "scale_bias"}:
            parameter.requires_grad_(False)
    losses: list[list[float]] = []
    for model in (ours, theirs):
        generator = torch.Generator().manual_seed(3)
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4
        )
        losses.append([])
        for _ in range(30):
            x = torch.randn(8, 2, 8, 8, dtype=D, generator=generator)
            loss = F.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.allclose(state[name].double(), value.double(), rtol=1e-8, atol=1e-10), name
