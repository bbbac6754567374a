"""``diagnose``: one pass over the data, and what it says of every normaliser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from rbnorm.diagnosis.build import layer_diagnosis
from rbnorm.diagnosis.images import Images, ImageShift
from rbnorm.diagnosis.meter import LayerMeter
from rbnorm.diagnosis.passes import Forward, call, normalisers, run, unchanged
from rbnorm.diagnosis.result import Diagnosis


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    shifted: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> Diagnosis:
    r"""Measure where the statistics of instances and batches leave a model's running statistics.

    One pass in evaluation mode, without gradients; what is kept does not grow with the number of
    batches, but for two numbers an instance. The model is left as it was found: training flags,
    buffers, hooks, and the state of torch's random numbers.

    For instance n and channel c, with :math:`m, v` the mean and biased variance over the positions
    of what the layer normalises (its input; for RBN :math:`z = x + w_m K(x)`), :math:`\mu,
    \sigma^2` the running statistics and :math:`\epsilon` the layer's own, the columns are means
    over instances and channels of

    - ``mean_offset``: :math:`(m - \mu) / \sqrt{\sigma^2 + \epsilon}`;
    - ``log_var_ratio``: :math:`\ln((v + \epsilon) / (\sigma^2 + \epsilon))`;
    - ``mean_below``, ``mean_above``, ``var_below``, ``var_above``: 1 where the first of these is
      beyond 0.5, or the second beyond :math:`\ln 2`, else 0.

    ``between_share`` is :math:`\mathrm{Var}_n(m) / (\mathrm{Var}_n(m) + \mathrm{mean}_n(v))` of the
    layer's input :math:`x`, averaged over channels. With a single position per channel variances of
    instances do not exist and ``log_var_ratio``, ``var_below`` and ``var_above`` are NaN. Without
    running statistics everything that compares with them is. ``output_mean_std`` is the standard
    deviation over channels of the mean output, before any activation of a norm-act layer.

    RBN layers add ``between_share_centred`` (of :math:`z`), ``center_weight``, the shares of
    channels in the regimes of :math:`w_m` (within 0.05 of -1 ``center_removes`` the instance mean,
    below that ``center_reverses`` it, above that ``center_damps`` it, within 0.05 of 0
    ``center_neutral`` is BatchNorm, above that ``center_amplifies`` it), ``gate_mean``,
    ``gate_spread`` (standard deviation over instances), ``gate_inert`` (share of channels whose
    spread is below 1 % of the mean: the gate could be absorbed into gamma) and ``gain`` (gamma
    times ``gate_mean``).

    Args:
        model: Any model with layers that are a torch BatchNorm, synchronised or not, or derived
            from one: timm's norm-act layers and RBN.
        batches: Tensors, or sequences whose first item is one. They are moved to the model's
            device.
        shifted: A second data set; the result then has its own diagnosis, and how far the images
            themselves moved.
        forward: Called with the model and a batch, for models and batches of another form.

    Returns:
        A :class:`rbnorm.Diagnosis`. A layer that no batch reached is there, with NaN.

    Raises:
        ValueError: The model has no such layer, one without values yet, or none was reached;
            or there is no batch.
        RuntimeError: The model raised; the sentence names the batch and the last layer before it.
    """
    images, others = Images(), Images()
    result = _measure(model, batches, images, forward or call)
    if shifted is not None:
        second = _measure(model, shifted, others, forward or call)
        moved = ImageShift.of(images, others)
        result = replace(result, shifted=second, images=moved)
    return result


def _measure(
    model: nn.Module,
    batches: Iterable[Any],
    images: Images,
    forward: Forward,
) -> Diagnosis:
    meters = {n: LayerMeter(layer) for n, layer in normalisers(model).items()}
    with unchanged(model):
        model.eval()
        count = run(model, batches, forward, meters, on_input=images)
    if not any(meter.instances for meter in meters.values()):
        raise ValueError(
            f"batches must reach a normaliser, but none of the {len(meters)} in the model got an "
            "instance"
        )
    layers = tuple(layer_diagnosis(name, meter) for name, meter in meters.items())
    return Diagnosis(layers, count)
