"""What a diagnosis says, in plain sentences."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Final

import rbnorm
from rbnorm import LayerDiagnosis
from rbnorm_lab.cases import CASES
from rbnorm_lab.text import Text

_OFF: Final = 0.25  # mean offset, or log variance ratio, at which running statistics are off
_APART: Final = 0.2  # share of variance between instances that centring can act on
_NOISY: Final = 0.2  # spread of the means of small batches, in standard deviations
_SMALL_BATCH: Final = 8


def findings(result: rbnorm.Diagnosis, images: int) -> list[Text]:
    """Which layers, which of the four cases, how large, and what to try; each names its data.

    Args:
        result: What was measured.
        images: How many images the first data set has.
    """
    layers = _reached(result)
    kinds = Counter(layer.kind for layer in result.layers)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    counted_zh = "、".join(f"{count} 个 {kind} 层" for kind, count in kinds.items())
    of_first = Text(" of the first data", "第一个数据集的") if result.shifted else Text("", "")
    sentences = [
        Text(
            f"Measured on {images} images{of_first.en}: {counted}.",
            f"在{of_first.zh} {images} 张图像上测得：共 {counted_zh}。",
        )
    ]
    sentences += _images(result)
    sentences += [s for case in CASES if (s := _case(case, result))]
    sentences += _broken(result)
    sentences += _small_batches(layers)
    sentences += _shift(result)
    sentences += _calibration(result)
    sentences += _effect(result)
    return [*sentences, *advice(layers)]


def _images(result: rbnorm.Diagnosis) -> list[Text]:
    """What is wrong before any layer."""
    shift = result.images
    if shift is None:
        return []
    what = {"mean": "均值", "contrast": "对比度", "both": "均值和对比度", None: ""}[shift.moved]
    advice = f"可把每张图像的{what}设为第一个数据集的：rbnorm.MatchMoments。"
    return [
        Text(
            shift.sentence,
            f"第二个数据集的图像比第一个{'暗' if shift.mean < 0 else '亮'} {abs(shift.mean):.2f} 个"
            f"标准差，对比度是其 {shift.contrast:.2f} 倍："
            + (advice if shift.moved else "问题不在于此。"),
        )
    ]


def _reached(result: rbnorm.Diagnosis) -> list[LayerDiagnosis]:
    return [layer for layer in result.layers if layer.instances]


def _each(result: rbnorm.Diagnosis, say: Callable[[rbnorm.Diagnosis], str]) -> Text:
    """A number on the first data and, where there is one, on the second."""
    first = say(result)
    if result.shifted is None:
        return Text(first, first)
    second = say(result.shifted)
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


def _known(layers: Sequence[LayerDiagnosis], name: str) -> list[LayerDiagnosis]:
    return [layer for layer in layers if math.isfinite(layer.values.get(name, math.nan))]


def _case(case: str, result: rbnorm.Diagnosis) -> Text | None:
    def share(of: rbnorm.Diagnosis) -> float:
        known = [layer[case] for layer in _known(_reached(of), case)]
        return fmean(known) if known else math.nan

    known = _known(_reached(result.shifted or result), case)
    if not known:
        return None
    _, limit, effect = CASES[case]
    values = {"mean": result.thresholds.mean, "factor": math.exp(result.thresholds.log_var)}
    shares = _each(result, lambda of: percent(share(of)))
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


def _small_batches(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    spreads = [
        (spread.mean, layer_name(layer))
        for layer in layers
        for spread in layer.batch_spread
        if spread.size == _SMALL_BATCH and math.isfinite(spread.mean)
    ]
    if not spreads:
        return []
    most, where = max(spreads)
    average = fmean(value for value, _ in spreads)
    prefer = Text("", "")
    if most > _NOISY:
        prefer = Text(": prefer larger batches in training", "：训练时批量宜更大")
    return [
        Text(
            f"From one batch of {_SMALL_BATCH} images of the first data to the next the batch mean "
            f"varies by {average:.2f} standard deviations, in {where} by {most:.2f}{prefer.en}.",
            f"第一个数据集按 {_SMALL_BATCH} 张一批时，批均值在各批之间的波动平均为 "
            f"{average:.2f} 个标准差，在 {where} 中为 {most:.2f}{prefer.zh}。",
        )
    ]


def _shift(result: rbnorm.Diagnosis) -> list[Text]:
    if result.shifted is None:
        return []
    ranked = [layer for layer in result.ranking() if layer["shift"] > 0][:3]
    if not ranked:
        return [Text("The second data set moves no layer.", "第二个数据集没有使任何层偏移。")]
    named = ", ".join(f"{layer_name(layer)} ({layer['shift']:.2f})" for layer in ranked)
    return [
        Text(
            f"The second data set moves these layers furthest, in standard deviations: {named}. "
            "That does not make them the ones to repair: on shifts between domains the study of "
            "location found no relation. Re-estimate all layers first, and go by the table of "
            "remedies.",
            f"第二个数据集使这些层的统计量偏移最大（以标准差计）：{named}。"
            "但它们不因此就是该修复的层：在域之间的偏移上，location 研究没有发现二者相关。"
            "先重新估计全部层，以补救办法的表格为准。",
        )
    ]


def _calibration(result: rbnorm.Diagnosis) -> list[Text]:
    def mean_of(name: str, of: rbnorm.Diagnosis) -> float:
        return fmean(layer[name] for layer in _known(_reached(of), name))

    found = []
    if _known(_reached(result), "center_weight"):
        shares = {
            name: percent(mean_of(f"center_{name}", result))
            for name in ("removes", "damps", "neutral", "amplifies", "reverses")
        }
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
        before, after = (
            _each(result, lambda of, n=name: percent(mean_of(n, of)))  # type: ignore[misc]
            for name in ("between_share", "between_share_centred")
        )
        found.append(
            Text(
                f"Share of the variance that lies between images, before centring: {before.en}; "
                f"after it: {after.en}.",
                f"来自图像之间的方差占比，中心化校准前：{before.zh}；校准后：{after.zh}。",
            )
        )
    if _known(_reached(result), "gate_inert"):
        mean, spread = (
            _each(result, lambda of, n=name: f"{mean_of(n, of):.3f}")  # type: ignore[misc]
            for name in ("gate_mean", "gate_spread")
        )
        inert = _each(result, lambda of: percent(mean_of("gate_inert", of)))
        found.append(
            Text(
                f"The gate's mean: {mean.en}; how much it varies over images: {spread.en}; "
                f"channels where it is inert and could be absorbed into gamma: {inert.en}.",
                f"门控的平均值：{mean.zh}；在图像之间的变化：{spread.zh}；"
                f"几乎不变、可并入 γ 的通道：{inert.zh}。",
            )
        )
    return found


def _effect(result: rbnorm.Diagnosis) -> list[Text]:
    whole = {c.without: c.accuracy for c in result.counterfactuals if c.layer is None}
    if "nothing" not in whole:
        return []
    names = {"centring": "中心化校准", "scaling": "缩放校准"}
    return [
        Text(
            f"Without {without} in any layer, and with re-estimated running statistics, the "
            f"accuracy on the first data goes from {percent(whole['nothing'])} to "
            f"{percent(accuracy)}.",
            f"所有层都去掉{names[without]}并重新估计滑动统计量后，"
            f"第一个数据集上的准确率从 {percent(whole['nothing'])} 变为 {percent(accuracy)}。",
        )
        for without, accuracy in whole.items()
        if without != "nothing"
    ]


def advice(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    """What is worth a look by the first data, each with the number that says so."""
    found = []
    off = [
        layer
        for layer in _known(layers, "mean_offset")
        if float(layer.per_channel["mean_offset"].abs().nanmean()) > _OFF
    ]
    if off:
        found.append(
            Text(
                f"Try rbnorm.recalibrate: in {_count(off)}, the first {layer_name(off[0])}, "
                "the channels' means over all images of the first data are more than "
                f"{_OFF} standard deviations off the running means, so these statistics are not "
                "those of that data.",
                f"可试 rbnorm.recalibrate：有 {len(off)} 层（第一个是 {layer_name(off[0])}）的通道"
                f"在第一个数据集上的均值偏离滑动均值超过 {_OFF} 个标准差，"
                "即这些统计量不属于这份数据。",
            )
        )
    return [*found, *_centring(layers), *_scaling(layers)]


def _centring(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    plain = [layer for layer in layers if "center_weight" not in layer.values]
    apart = [layer for layer in _known(plain, "between_share") if layer["between_share"] > _APART]
    share = percent(_APART)
    if apart:
        most = layer_name(max(apart, key=lambda layer: layer["between_share"]))
        return [
            Text(
                f"In {_count(apart)}, above all {most}, more than {share} of the variance of the "
                "first data lies between images: RBN's centring has something to act on there; "
                "whether that gains accuracy, only training tells.",
                f"第一个数据集上有 {len(apart)} 层超过 {share} 的方差来自图像之间，尤其是 {most}："
                "中心化校准在这些层才有用武之地；能否提高准确率，要训练后再看。",
            )
        ]
    if plain:
        return [
            Text(
                f"In no BatchNorm layer does more than {share} of the variance of the first data "
                "lie between images: RBN's centring has little to act on here.",
                f"第一个数据集上没有任何 BatchNorm 层超过 {share} 的方差来自图像之间："
                "RBN 的中心化校准作用不大。",
            )
        ]
    return []


def _scaling(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    inert = [d for d in _known(layers, "gate_inert") if d["gate_inert"] > 0.9]
    if not inert:
        return []
    return [
        Text(
            f"Try scale=False in {_count(inert)}, the first {layer_name(inert[0])}: "
            "their scaling is inert in more than 90.0 % of the channels.",
            f"有 {len(inert)} 层（第一个是 {layer_name(inert[0])}）超过 90.0 % 的通道缩放校准"
            "几乎不起作用，可试 scale=False。",
        )
    ]
