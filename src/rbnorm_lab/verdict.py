"""What the remedies that were tried say, in three lines and a table."""

import math
from collections.abc import Callable
from typing import Final

from rbnorm import Remedies, Remedy
from rbnorm.remedy import Interval
from rbnorm_lab.findings import percent
from rbnorm_lab.text import Text

_LOST: Final = 0.01  # of accuracy: less is not worth a repair
_CLOSE: Final = 0.01  # a remedy that takes less is preferred to one that wins this much more


def points(interval: Interval) -> str:
    """A difference in percentage points with its interval."""
    if math.isnan(interval.value):
        return "–"
    value, low, high = map(_signed, interval)
    return f"{value} [{low}, {high}]"


def _signed(share: float) -> str:
    """In percent, with a sign unless it rounds to nothing."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return text[1:] if text[1:] == "0.0" else text


def accuracy(interval: Interval) -> str:
    """An accuracy in percent with its interval."""
    if math.isnan(interval.value):
        return "–"
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def remedy_name(remedy: Remedy) -> Text:
    """Its name in both languages."""
    return Text(remedy.name, _ZH[remedy.kind](remedy))


def _own(name: str) -> str:
    what = "和".join(zh for en, zh in (("mean", "均值"), ("contrast", "对比度")) if en in name)
    return f"{'各通道' if 'channel' in name else ''}自身的{what}"


_ZH: Final[dict[str, Callable[[Remedy], str]]] = {
    "unchanged": lambda remedy: "原样",
    "moments": lambda remedy: f"每张图像{_own(remedy.name)}设为第一个数据集的",
    "re-estimated": lambda remedy: "在第二个数据集上重新估计统计量",
    "test-batch": lambda remedy: f"用测试批统计量，批大小 {remedy.batch_size}",
    "mixed": lambda remedy: f"滑动统计量与测试批统计量混合，批大小 {remedy.batch_size}",
    "tent": lambda remedy: f"TENT，批大小 {remedy.batch_size}",
    "fine-tuned": lambda remedy: (
        f"{'转换为 RBN 后' if 'RBN' in remedy.name else '不转换，直接'}微调 "
        f"{remedy.name.rsplit(', ', 1)[1].split()[0]} 步"
    ),
}


def needs(remedy: Remedy) -> Text:
    """What it takes."""
    wanted = [
        (remedy.needs_labels, Text("labelled training images", "有标签的训练图像")),
        (remedy.needs_data, Text("unlabelled images of the second kind", "第二类数据的无标签图像")),
        (remedy.needs_batches, Text("batches at test time", "测试时成批输入")),
    ]
    texts = [text for need, text in wanted if need]
    if not texts:
        return Text("nothing", "无")
    return Text(", ".join(t.en for t in texts), "、".join(t.zh for t in texts))


def verdict(result: Remedies, *, convertible: bool = True) -> list[Text]:
    """The answer: what is lost, what wins it back at what price, and when RBN is not the remedy.

    Args:
        result: What was tried.
        convertible: Whether the model has BatchNorm that could become RBN.
    """
    if math.isnan(result.unchanged.second.value):
        return [_unlabelled(result)]
    return [_loss(result), _best(result), *([_rbn(result)] if convertible else [])]


def _loss(result: Remedies) -> Text:
    first, second = result.unchanged.first, result.unchanged.second
    if math.isnan(first.value):
        return Text(
            f"The model has {accuracy(second)} % on the second data.",
            f"模型在第二个数据集上的准确率为 {accuracy(second)} %。",
        )
    a, b, lost = accuracy(first), accuracy(second), 100 * result.lost
    if result.lost < _LOST:
        return Text(
            f"Nothing to repair: {a} % on the first data, {b} % on the second.",
            f"无需修复：第一个数据集上 {a} %，第二个数据集上 {b} %。",
        )
    return Text(
        f"The second data costs {lost:.1f} points: {a} % on the first, {b} % on it.",
        f"第二个数据集上损失 {lost:.1f} 个百分点：第一个数据集 {a} %，第二个 {b} %。",
    )


def recommended(result: Remedies) -> Remedy | None:
    """The cheapest of the remedies that help about as much as the best; None where none helps."""
    helpful = result.helpful()
    near = [r for r in helpful if r.difference.value > helpful[0].difference.value - _CLOSE]
    return min(near, key=_price, default=None)


def _best(result: Remedies) -> Text:
    best = recommended(result)
    if best is None:
        return Text(
            "No remedy that was tried helps beyond doubt: every interval of the difference "
            "contains zero or lies below it.",
            "所试的补救办法都没有确定的效果：各差值的区间都包含零或在零以下。",
        )
    name, gain, need = remedy_name(best), points(best.difference), needs(best)
    share = best.difference.value / result.lost if result.lost >= _LOST else math.nan
    back = Text("", "")
    if 0 < share < 0.995:
        back = Text(f", {100 * share:.0f} % of the loss", f"，挽回损失的 {100 * share:.0f} %")
    elif share > 0:
        back = Text(", the whole loss", "，挽回了全部损失")
    seen = Text("", "")
    if best.kind == "re-estimated":
        seen = Text(
            ", and here they are the images that it is tested on",
            "（这里用的就是测试它的那些图像）",
        )
    return Text(
        f"Best: {name.en}: {gain} points{back.en}; it needs {need.en}{seen.en}.",
        f"最佳：{name.zh}：{gain} 个百分点{back.zh}；需要：{need.zh}{seen.zh}。",
    )


def _price(remedy: Remedy) -> tuple[bool, bool, bool, float]:
    return remedy.needs_labels, remedy.needs_batches, remedy.needs_data, remedy.passes


def _rbn(result: Remedies) -> Text:
    tuned = [row for row in result.rows if row.kind == "fine-tuned"]
    rbn = next((row for row in tuned if "RBN" in row.name), None)
    plain = next((row for row in tuned if "RBN" not in row.name), None)
    if rbn is None or plain is None:
        return Text(
            "RBN was not tried: converted, a model computes the same until it is trained on; "
            "--fine-tune STEPS tries it.",
            "没有试 RBN：转换后的模型在继续训练之前输出不变；用 --fine-tune 步数 来试。",
        )
    gained = rbn.second.value - plain.second.value
    others = [row for row in result.rows if row.kind != "fine-tuned"]
    better = max(others, key=lambda row: row.second.value)
    if gained < _CLOSE and plain.second.value > better.second.value:
        better = plain
    if gained < _CLOSE or rbn.second.value < better.second.value:
        name, share = remedy_name(better), percent(better.second.value)
        return Text(
            f"RBN is not the remedy here: fine-tuned it has {percent(rbn.second.value)}; "
            f"{name.en}: {share}.",
            f"这里 RBN 不是对策：微调后为 {percent(rbn.second.value)}；{name.zh}：{share}。",
        )
    return Text(
        f"RBN, fine-tuned, is {100 * gained:.1f} points ahead of BatchNorm fine-tuned alike, on "
        "one run of each: repeat it with other seeds before you rely on it.",
        f"微调后的 RBN 比同样微调的 BatchNorm 高 {100 * gained:.1f} 个百分点；"
        "各只训练了一次，换几个随机种子重复后再下结论。",
    )


def _unlabelled(result: Remedies) -> Text:
    row = result.unchanged
    first, second = (percent(value) for value in row.confidence)
    return Text(
        f"Without labels no accuracy can be told; the mean confidence is {first} on the first "
        f"data and {second} on the second. The table has each remedy's agreement with the "
        "unchanged model.",
        f"没有标签，无法给出准确率；平均置信度在第一个数据集上为 {first}，"
        f"在第二个数据集上为 {second}。表中给出各补救办法与原模型预测的一致率。",
    )
