"""The names of arms and groups, and the figures' words, in Chinese."""

import re
from typing import Final

_PHRASES: Final = {
    "whole batch": "整批",
    "normalisation batch": "归一化批量",
    ", sorted by class": "，按类别排序",
    ", RBN's learning rate": "（RBN 的学习率）",
    ", BatchNorm's learning rate": "（BatchNorm 的学习率）",
    ", gamma compensated": "，补偿 γ",
    ", rate tuned for this batch": "（按此批量调学习率）",
    ", mean and contrast set": "（图像的均值与对比度已统一）",
    ", w_m begins at -0.9 in the first layer": "（首层 w_m 从 -0.9 开始）",
    "centring only": "仅中心化",
    "scaling only": "仅缩放",
    "neither": "都不用",
    "both": "两者都用",
    "statistic: ": "统计量：",
    "restriction: ": "限制函数：",
    "no decay of the calibration": "校准参数不做权重衰减",
    "fine-tuned": "微调",
    "converted to ": "转换为 ",
    "test accuracy (%)": "测试准确率（%）",
    "test loss": "测试损失",
    "layer, from input to output": "层，从输入到输出",
    "std of channel means": "通道均值的标准差",
    "epoch": "训练周期",
    "batch size": "批大小",
    "normalisation layer, input to output": "归一化层，从输入到输出",
    "std over channels of": "各通道输出均值",
    "the channels' mean output": "在通道之间的标准差",
    "training step": "训练步耗时",
    "inference": "推理耗时",
    "kept for backward": "为反向传播保存",
    "peak memory": "峰值内存",
    "/ BatchNorm's": "与 BatchNorm 之比",
    ", video order": "，视频顺序",
    ", frozen statistics": "（冻结统计量）",
    "mean IoU (%)": "平均 IoU（%）",
    "mean corruption accuracy (%)": "退化图像上的平均准确率（%）",
    "minus the baseline of the same seed (points)": "减去同一种子的基线（百分点）",
    "minus the baseline (points)": "减去基线（百分点）",
}
_ANY: Final = re.compile("|".join(map(re.escape, sorted(_PHRASES, key=len, reverse=True))))
_WORD: Final = r"\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
_MARK: Final = r"\u3000-\u303f\uff00-\uffef"
_BLANK: Final = re.compile(f"(?<=[{_MARK}]) | (?=[{_MARK}])|(?<=[{_WORD}]) (?=[{_WORD}])")


def chinese(name: str) -> str:
    """A name with the phrases that it is made of in Chinese; norms keep their names."""
    return _ANY.sub(lambda match: _PHRASES[match[0]], name)


def close(sentence: str) -> str:
    """A Chinese sentence without blanks beside its punctuation and between its words."""
    return _BLANK.sub("", sentence)
