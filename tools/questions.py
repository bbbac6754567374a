"""The questions of the first table of docs/results.md, and the answers that were read from them."""

from __future__ import annotations

from typing import Final, NamedTuple

from rbnorm_lab.shift import TEST_BATCH
from rbnorm_lab.studies.study import Comparison
from rbnorm_lab.studies.variants import MATCHED
from rbnorm_lab.text import Text


class Question(NamedTuple):
    """A row of the table.

    Attributes:
        question: What is asked.
        answer: In a few words; the number beside it is drawn from the records.
        study: Name of the study that has the comparison.
        comparison: The comparison.
    """

    question: Text
    answer: Text
    study: str
    comparison: Comparison


QUESTIONS: Final = (
    Question(
        Text(
            "ResNet-20, CIFAR-10: RBN on clean images?", "ResNet-20，CIFAR-10：干净图像上的 RBN？"
        ),
        Text("no lead detected", "未检测到领先"),
        "cifar",
        Comparison("whole batch", "rbn", "bn", "clean"),
    ),
    Question(
        Text("the same, corrupted images?", "同上，退化图像？"),
        Text("no lead detected", "未检测到领先"),
        "cifar",
        Comparison("whole batch", "rbn", "bn", "shifted"),
    ),
    Question(
        Text("the same, images of equal mean and contrast?", "同上，图像的均值与对比度已统一？"),
        Text("no lead detected", "未检测到领先"),
        "cifar",
        Comparison("whole batch", f"rbn{MATCHED}", f"bn{MATCHED}", "shifted"),
    ),
    Question(
        Text(
            "ResNet-8, Fashion-MNIST: RBN on clean images?",
            "ResNet-8，Fashion-MNIST：干净图像上的 RBN？",
        ),
        Text("ahead; it is the rate", "领先，但来自学习率"),
        "primary",
        Comparison("whole batch", "rbn", "bn", "clean"),
    ),
    Question(
        Text("the same, at one learning rate?", "同上，学习率相同？"),
        Text("level", "持平"),
        "primary",
        Comparison("whole batch", "rbn", "bn, RBN's learning rate", "clean"),
    ),
    Question(
        Text("the same, corrupted images?", "同上，退化图像？"),
        Text("RBN is ahead", "RBN 领先"),
        "primary",
        Comparison("whole batch", "rbn", "bn", "shifted"),
    ),
    Question(
        Text("Which part does that?", "来自哪一部分？"),
        Text("centring; scaling adds nothing", "中心化；缩放没有贡献"),
        "ablation",
        Comparison("whole batch", "both", "centring only", "shifted"),
    ),
    Question(
        Text(
            "RBN, or BN on images of equal mean and contrast?",
            "RBN，还是均值与对比度已统一的图像上的 BN？",
        ),
        Text("the images: RBN adds nothing", "统一图像：RBN 没有更多贡献"),
        "shift",
        Comparison("whole batch", "rbn", f"bn{MATCHED}", "shifted"),
    ),
    Question(
        Text("RBN, or BN with the statistics of test batches?", "RBN，还是使用测试批统计量的 BN？"),
        Text("test batches, where there are any", "测试批统计量，如果有成批图像"),
        "shift",
        Comparison("whole batch", "rbn", "bn", "shifted", TEST_BATCH),
    ),
    Question(
        Text("RBN, or GN, on corrupted images?", "退化图像上用 RBN 还是 GN？"),
        Text("GN, three points less on clean ones", "GN，但干净图像上低三个点"),
        "shift",
        Comparison("whole batch", "rbn", "gn", "shifted"),
    ),
    Question(
        Text("Two images normalised together, one rate?", "两张图像一起归一化，学习率相同？"),
        Text("BN is ahead", "BN 领先"),
        "batch-size",
        Comparison("normalisation batch 2", "rbn", "bn, RBN's learning rate", "clean"),
    ),
    Question(
        Text("Street scenes, shuffled batches of 8?", "街景，打乱的 8 张一批？"),
        Text("level", "持平"),
        "segmentation",
        Comparison("whole batch", "rbn", "bn", "iou"),
    ),
    Question(
        Text("Street scenes, two video frames together?", "街景，相邻两帧一起归一化？"),
        Text("RBN is ahead", "RBN 领先"),
        "segmentation",
        Comparison("normalisation batch 2, video order", "rbn", "bn", "iou"),
    ),
    Question(
        Text("Fine-tuned, tested on a new domain?", "微调后在新的域上测试？"),
        Text("level", "持平"),
        "domains",
        Comparison(None, "RBN", "BN", "target"),
    ),
)
