"""The names of arms and groups, and the figures' words, in Chinese."""

import re
from typing import Final

from rbnorm_lab.text import Text

PHRASES: Final = {
    "whole batch": "整批",
    "normalisation batch": "归一化批量",
    ", RBN's learning rate": "（RBN 的学习率）",
    ", BatchNorm's learning rate": "（BatchNorm 的学习率）",
    "centring only": "仅中心化",
    ", frozen statistics": "（冻结统计量）",
    ", without ": "，不含 ",
    "scaling only": "仅缩放",
    ", mean and contrast set": "（图像的均值与对比度已统一）",
    "test accuracy (%)": "测试准确率（%）",
    "batch size": "批大小",
    "normalisation layer, input to output": "归一化层，从输入到输出",
    "std over channels of": "各通道输出均值",
    "the channels' mean output": "在通道之间的标准差",
    "source accuracy (%)": "源域准确率（%）",
    "target accuracy (%)": "目标域准确率（%）",
    "mean IoU (%)": "平均 IoU（%）",
    "mean corruption accuracy (%)": "退化图像上的平均准确率（%）",
    "minus the baseline of the same seed (points)": "减去同一种子的基线（百分点）",
    "minus the baseline (points)": "减去基线（百分点）",
}
_WORD: Final = r"\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
_MARK: Final = r"\u3000-\u303f\uff00-\uffef"
_BLANK: Final = re.compile(f"(?<=[{_MARK}]) | (?=[{_MARK}])|(?<=[{_WORD}]) (?=[{_WORD}])")


MEASURES: Final = {
    "clean": Text("accuracy on clean test images", "干净测试图像上的准确率"),
    "shifted": Text("mean accuracy under corruptions", "各种图像退化下的平均准确率"),
    "iou": Text("mean IoU", "平均 IoU"),
    "source": Text("accuracy on held-out images of the source domains", "源域留出图像上的准确率"),
    "target": Text("accuracy on a domain it was not trained on", "未参与训练的域上的准确率"),
}
STATISTICS: Final = {
    "trained": Text("statistics of training", "训练时的统计量"),
    "re-estimated": Text(
        "statistics re-estimated on clean training images", "在干净训练图像上重新估计的统计量"
    ),
    "test-batch": Text("statistics of the test batch", "测试批统计量"),
    "test-batch-64": Text("statistics of 64 test images", "64 张测试图像的统计量"),
    "test-batch-8": Text("statistics of 8 test images", "8 张测试图像的统计量"),
}


KINDS: Final = {
    "noise": Text("Gaussian noise", "高斯噪声"),
    "impulse": Text("impulse noise", "脉冲噪声"),
    "blur": Text("blur", "模糊"),
    "pixelate": Text("pixelation", "像素化"),
    "contrast": Text("contrast", "对比度"),
    "brightness": Text("brightness", "亮度"),
    "jpeg": Text("JPEG", "JPEG 压缩"),
    "elastic": Text("elastic distortion", "弹性形变"),
}


def chinese(name: str) -> str:
    """A name with the phrases that it is made of in Chinese; norms keep their names."""
    longest = sorted(PHRASES, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest)), lambda match: PHRASES[match[0]], name)


def side(label: str, statistics: str) -> Text:
    """One arm of a comparison, and the statistics it is tested with if not those of training."""
    name = Text(label, f" {chinese(label)} ")
    if statistics == "trained":
        return name
    tested = STATISTICS[statistics]
    return Text(f"{name.en} with {tested.en}", f"{name.zh}（{tested.zh}）")


def close(sentence: str) -> str:
    """A Chinese sentence without blanks beside its punctuation and between its words."""
    return _BLANK.sub("", sentence)
