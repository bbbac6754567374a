"""What a diagnosis says, in plain sentences."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Final

import rbnorm
from rbnorm import LayerDiagnosis
from rbnorm.diagnosis import ImageShift
from rbnorm.diagnosis.meter import LIMITS
from rbnorm_lab.cases import CASES
from rbnorm_lab.text import Text

_OFF: Final = 0.25  # mean offset in standard deviations at which running statistics are off
_REGIMES: Final = ("removes", "damps", "neutral", "amplifies", "reverses")


def findings(result: rbnorm.Diagnosis, images: Sequence[int]) -> list[Text]:
    """Which of the four cases, how often, and what to try; each sentence names its data.

    Args:
        result: What was measured.
        images: How many images the first and, where there is one, the second data set have.
    """
    layers = _reached(result)
    kinds = Counter(layer.kind for layer in result.layers)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    counted_zh = "、".join(f"{count} 个 {kind} 层" for kind, count in kinds.items())
    measured = Text(f"{images[0]} images", f"{images[0]} 张图像")
    if result.shifted:
        measured = Text(
            f"{images[0]} images of the first data and {images[1]} of the second",
            f"第一个数据集的 {images[0]} 张、第二个的 {images[1]} 张图像",
        )
    return [
        Text(f"Measured on {measured.en}: {counted}.", f"在{measured.zh}上测得：共 {counted_zh}。"),
        *([] if result.images is None else [_images(result.images)]),
        *(s for case in CASES if (s := _case(case, result))),
        *_broken(result),
        *_calibration(result),
        *_recalibrate(layers),
    ]


def _images(shift: ImageShift) -> Text:
    """What is wrong before any layer."""
    mean, contrast = f"{abs(shift.mean):.2f}", f"{shift.contrast:.2f}"
    side = "暗" if shift.mean < 0 else "亮"
    light = "亮度与第一个相同" if mean == "0.00" else f"比第一个{side} {mean} 个标准差"
    same = "对比度也相同" if mean == "0.00" else "对比度相同"
    height = same if contrast == "1.00" else f"对比度是其 {contrast} 倍"
    what = {"mean": "均值", "contrast": "对比度", "both": "均值和对比度"}
    advice = "问题不在于此。"
    if shift.moved is not None:
        advice = f"可把每张图像的{what[shift.moved]}设为第一个数据集的：rbnorm.MatchMoments。"
    return Text(shift.sentence, f"第二个数据集的图像{light}，{height}：{advice}")


def _reached(result: rbnorm.Diagnosis) -> list[LayerDiagnosis]:
    return [layer for layer in result.layers if layer.instances]


def _known(layers: Sequence[LayerDiagnosis], name: str) -> list[LayerDiagnosis]:
    return [layer for layer in layers if math.isfinite(layer.values.get(name, math.nan))]


def _average(result: rbnorm.Diagnosis, name: str) -> float:
    """The mean over the layers that have it."""
    known = [layer[name] for layer in _known(_reached(result), name)]
    return fmean(known) if known else math.nan


def _each(result: rbnorm.Diagnosis, name: str, show: Callable[[float], str]) -> Text:
    """A number on the first data and, where there is one, on the second."""
    first = show(_average(result, name))
    if result.shifted is None:
        return Text(first, first)
    second = show(_average(result.shifted, name))
    return Text(
        f"{first} on the first data and {second} on the second",
        f"第一个数据集 {first}、第二个 {second}",
    )


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def layer_name(layer: LayerDiagnosis) -> str:
    """Its name, or a word for a model that is one layer."""
    return layer.layer or "(the layer)"


def _count(layers: Sequence[LayerDiagnosis]) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def _case(case: str, result: rbnorm.Diagnosis) -> Text | None:
    known = _known(_reached(result.shifted or result), case)
    if not known:
        return None
    _, limit, effect = CASES[case]
    values = {"mean": LIMITS["mean_above"], "factor": math.exp(LIMITS["var_above"])}
    shares = _each(result, case, percent)
    worst = max(known, key=lambda layer: layer[case])
    most = Text("", "")
    if worst[case]:
        on = Text(" of the second data", "第二个数据集上") if result.shifted else Text("", "")
        where = layer_name(worst), percent(worst[case])
        most = Text(
            f" (the paper: {effect.en}); most{on.en} in {', '.join(where)}",
            f"（论文：{effect.zh}）；{on.zh}最多的是 {'，'.join(where)}",
        )
    return Text(
        f"Of the pairs of image and channel, {shares.en} have {limit.en.format(**values)}"
        f"{most.en}.",
        f"（图像，通道）对中，{shares.zh} 的{limit.zh.format(**values)}{most.zh}。",
    )


def _broken(result: rbnorm.Diagnosis) -> list[Text]:
    found = []
    if result.unreached:
        names = ", ".join(result.unreached)
        found.append(Text(f"No image reached {names}.", f"没有图像到达 {names}。"))
    broken = [layer for layer in result.layers if layer.nonfinite]
    if broken:
        found.append(
            Text(
                f"{_count(broken)} got activations that are not finite, first "
                f"{layer_name(broken[0])}; they are left out of all numbers.",
                f"{len(broken)} 层收到非有限的激活值，最先是 {layer_name(broken[0])}；"
                "所有数字都不含这些值。",
            )
        )
    return found


def _calibration(result: rbnorm.Diagnosis) -> list[Text]:
    """What centring and scaling could act on, and what they do."""
    before, after = (
        _each(result, name, percent) for name in ("between_share", "between_share_centred")
    )
    centred = _known(_reached(result), "between_share_centred")
    left = Text("", "")
    if centred:
        left = Text(f"; after centring: {after.en}", f"；中心化校准后：{after.zh}")
    found = [
        Text(
            f"Share of the variance that lies between images, on which centring acts: {before.en}"
            f"{left.en}.",
            f"来自图像之间的方差占比，即中心化校准作用的对象：{before.zh}{left.zh}。",
        )
    ]
    if _known(_reached(result), "center_weight"):
        shares = {name: percent(_average(result, f"center_{name}")) for name in _REGIMES}
        found.append(
            Text(
                "Of the channels' centring weights {removes} remove the instance mean, {damps} "
                "damp it, {neutral} are BatchNorm, {amplifies} amplify it, "
                "{reverses} reverse it.".format(**shares),
                "各通道的中心化校准权重中，{removes} 去除实例均值，{damps} 减弱它，"
                "{neutral} 等同 BatchNorm，{amplifies} 增强它，{reverses} 使其反向。".format(
                    **shares
                ),
            )
        )
    if _known(_reached(result), "gate_inert"):
        mean, spread = (
            _each(result, name, "{:.2g}".format) for name in ("gate_mean", "gate_spread")
        )
        inert = _each(result, "gate_inert", percent)
        found.append(
            Text(
                f"The gate's mean: {mean.en}; how much it varies over images: {spread.en}; "
                f"channels where it is inert and could be absorbed into gamma: {inert.en}.",
                f"门控的平均值：{mean.zh}；在图像之间的变化：{spread.zh}；"
                f"几乎不变、可并入 γ 的通道：{inert.zh}。",
            )
        )
    return found


def _recalibrate(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    """Whether the running statistics are those of the first data."""
    off = [
        layer
        for layer in _known(layers, "mean_offset")
        if float(layer.per_channel["mean_offset"].abs().nanmean()) > _OFF
    ]
    if not off:
        return []
    return [
        Text(
            f"Try rbnorm.recalibrate: in {_count(off)} the channels' means over all images of the "
            f"first data are more than {_OFF} standard deviations off the running means, so these "
            "statistics are not those of that data.",
            f"可试 rbnorm.recalibrate：有 {len(off)} 层的通道在第一个数据集上的均值偏离滑动均值"
            f"超过 {_OFF} 个标准差，即这些统计量不属于这份数据。",
        )
    ]
