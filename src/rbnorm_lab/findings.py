"""What a diagnosis says, in plain sentences."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Final

import rbnorm
from rbnorm import LayerDiagnosis
from rbnorm_lab.text import Text

CASES: Final = {
    "mean_below": Text(
        "below the running mean: representative features are removed",
        "低于滑动均值：有代表性的特征被去除",
    ),
    "mean_above": Text("above the running mean: noise is let through", "高于滑动均值：噪声被保留"),
    "var_below": Text(
        "below the running variance: the intensity becomes too small",
        "低于滑动方差：特征强度变得过小",
    ),
    "var_above": Text(
        "above the running variance: the intensity becomes too large",
        "高于滑动方差：特征强度变得过大",
    ),
}
_OFF: Final = 0.25  # mean offset, or log variance ratio, at which running statistics are off
_APART: Final = 0.2  # share of variance between instances that centring can act on
_NOISY: Final = 0.2  # spread of the means of small batches, in standard deviations
_SMALL_BATCH: Final = 8


def findings(result: rbnorm.Diagnosis, images: int) -> list[Text]:
    """Which layers, which of the four cases, how large, and what to try."""
    layers = [layer for layer in result.layers if layer.instances]
    kinds = Counter(layer.kind for layer in result.layers)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    sentences = [
        Text(f"Measured on {images} images: {counted}.", f"在 {images} 张图像上测得：{counted}。")
    ]
    sentences += _images(result)
    sentences += [s for case in CASES if (s := _case(case, layers, result))]
    sentences += _broken(result)
    sentences += _small_batches(layers)
    sentences += _shift(result)
    sentences += _calibration(layers)
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


def _case(case: str, layers: Sequence[LayerDiagnosis], result: rbnorm.Diagnosis) -> Text | None:
    known = _known(layers, case)
    if not known:
        return None
    worst = max(known, key=lambda layer: layer[case])
    mean, factor = result.thresholds.mean, math.exp(result.thresholds.log_var)
    limit = (
        Text(f"more than {mean:g} running standard deviations", f"超过 {mean:g} 个滑动标准差")
        if case.startswith("mean")
        else Text(f"by more than a factor of {factor:.3g}", f"超过 {factor:.3g} 倍")
    )
    which = CASES[case]
    if not worst[case]:
        return Text(
            f"No pair of image and channel lies {limit.en} {which.en.split(':')[0]}.",
            f"没有任何（图像，通道）对{which.zh.split('：')[0]}{limit.zh}。",
        )
    share = percent(fmean(layer[case] for layer in known))
    most = f"{layer_name(worst)}, {percent(worst[case])}"
    return Text(
        f"{share} of the pairs of image and channel lie {limit.en} {which.en}; most in {most}.",
        f"{share} 的（图像，通道）对{limit.zh}地{which.zh}；最多的是 {most}。",
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
    return [
        Text(
            f"From one batch of {_SMALL_BATCH} to the next the batch mean varies by "
            f"{average:.2f} standard deviations, in {where} by {most:.2f}.",
            f"批量为 {_SMALL_BATCH} 时，批均值在各批之间的波动平均为 {average:.2f} 个标准差，"
            f"在 {where} 中为 {most:.2f}。",
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


def _calibration(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    found = []
    centred = _known(layers, "center_weight")
    if centred:
        shares = {
            name: percent(fmean(layer[f"center_{name}"] for layer in centred))
            for name in ("removes", "damps", "neutral", "amplifies", "reverses")
        }
        before, after = (
            percent(fmean(layer[name] for layer in _known(centred, name)))
            for name in ("between_share", "between_share_centred")
        )
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
        found.append(
            Text(
                f"Before centring {before} of the variance lies between images, after it {after}.",
                f"中心化校准前，{before} 的方差来自图像之间；校准后为 {after}。",
            )
        )
    gated = _known(layers, "gate_inert")
    if gated:
        mean, spread, inert = (
            fmean(layer[name] for layer in gated)
            for name in ("gate_mean", "gate_spread", "gate_inert")
        )
        found.append(
            Text(
                f"The gate is {mean:.3f} on average and varies by {spread:.3f} over images; in "
                f"{percent(inert)} of the channels it is inert and could be absorbed into gamma.",
                f"门控的平均值为 {mean:.3f}，在图像之间变化 {spread:.3f}；"
                f"在 {percent(inert)} 的通道中它几乎不变，可并入 γ。",
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
            f"Without {without} in any layer the accuracy goes from {percent(whole['nothing'])} to "
            f"{percent(accuracy)}, running statistics re-estimated.",
            f"所有层都去掉{names[without]}并重新估计滑动统计量后，"
            f"准确率从 {percent(whole['nothing'])} 变为 {percent(accuracy)}。",
        )
        for without, accuracy in whole.items()
        if without != "nothing"
    ]


def advice(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    """What is worth a look, each with the number that says so."""
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
                f"the channels' means over all images are more than {_OFF} standard deviations off "
                "the running means, so these statistics are not those of this data.",
                f"可试 rbnorm.recalibrate：有 {len(off)} 层（第一个是 {layer_name(off[0])}）的通道"
                f"均值偏离滑动均值超过 {_OFF} 个标准差，即这些统计量不属于这份数据。",
            )
        )
    return [*found, *_centring(layers), *_batches(layers), *_scaling(layers)]


def _centring(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    plain = [layer for layer in layers if "center_weight" not in layer.values]
    apart = [layer for layer in _known(plain, "between_share") if layer["between_share"] > _APART]
    share = percent(_APART)
    if apart:
        most = layer_name(max(apart, key=lambda layer: layer["between_share"]))
        return [
            Text(
                f"In {_count(apart)} more than {share} of the variance lies between images, above "
                f"all {most}: there RBN's centring has something to act on; whether that gains "
                "accuracy only training tells.",
                f"有 {len(apart)} 层超过 {share} 的方差来自图像之间，尤其是 {most}："
                "RBN 的中心化校准在那里有作用对象；能否提高准确率，只有训练才知道。",
            )
        ]
    if plain:
        return [
            Text(
                f"In no BatchNorm layer more than {share} of the variance lies between "
                "images: RBN's centring has little to act on here.",
                f"没有任何 BatchNorm 层超过 {share} 的方差来自图像之间：RBN 的中心化校准作用不大。",
            )
        ]
    return []


def _batches(layers: Sequence[LayerDiagnosis]) -> list[Text]:
    noisy = [
        d for d in layers for s in d.batch_spread if s.size == _SMALL_BATCH and s.mean > _NOISY
    ]
    if not noisy:
        return []
    return [
        Text(
            f"Prefer batches of more than {_SMALL_BATCH} in training: in {_count(noisy)} the "
            f"means of such batches vary by more than {_NOISY} standard deviations.",
            f"训练时批量宜大于 {_SMALL_BATCH}：有 {len(noisy)} 层在该批量下批均值的波动"
            f"超过 {_NOISY} 个标准差。",
        )
    ]


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
