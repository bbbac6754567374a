"""What the studies' answers do not say."""

from typing import Final

from rbnorm_lab.text import Text

SMALL_STUDY: Final = Text(
    "Small networks and images: nothing here says what holds for ImageNet, detection or "
    "segmentation.",
    "网络和图像都很小：这里的结论不能推广到 ImageNet、检测或分割。",
)
SEEDS_ONLY: Final = Text(
    "The intervals show the spread over seeds, not over other training or test images.",
    "区间只反映随机种子之间的差异，不反映换一批训练或测试图像的差异。",
)
EXPLORATORY: Final = Text(
    "These comparisons are exploratory: their p values are not corrected for their number.",
    "这些比较是探索性的：p 值没有按比较次数校正。",
)
RBN_RATE: Final = Text(
    "Every variant of RBN has the learning rate chosen for RBN, so that one thing changes at a "
    "time; a rate of its own might suit a variant better.",
    "RBN 的各个变体都使用为 RBN 选出的学习率，以保证每次只改变一个因素；"
    "单独调参可能对某个变体更有利。",
)
RATES: Final = Text(
    "Few seeds chose the learning rates, and the best rates differ by less than seeds do; the "
    "ablation has BatchNorm at RBN's rate too.",
    "学习率由少数几个种子选出，最优的几个学习率之间的差别小于种子之间的差别；"
    "消融研究中另有使用 RBN 学习率的 BatchNorm。",
)
BATCHES: Final = Text(
    "With few images normalised together both the training and the running statistics that the "
    "test uses are noisier; unless an arm says otherwise, its learning rate is the one chosen for "
    "the whole batch.",
    "归一化批量很小时，训练以及测试所用的 running 统计量都更嘈杂；"
    "除非注明，学习率是在整批归一化下选出的。",
)
SHIFT: Final = Text(
    "Corrupted accuracies are those of 2,000 fixed test images; statistics of the test batch are "
    "those of 250 of them under one corruption, which a single image at a time does not have.",
    "退化图像上的准确率取自固定的 2,000 张测试图像；测试批统计量取自同一种退化下的 250 张图像，"
    "逐张测试时无法得到。",
)
SCENES: Final = Text(
    "One network, small scenes of few drives, few epochs: differences between arms are the result, "
    "not the mean IoU itself.",
    "只有一个网络，场景图像很小且来自少数几段行车视频，训练轮数少："
    "应看各组之间的差异，而非平均 IoU 本身。",
)
SYNCHRONISED: Final = Text(
    "Statistics synchronised over the parts whose gradients are accumulated are those of the whole "
    "batch: its rows are what that gives. GroupNorm and frozen statistics do not depend on the "
    "normalisation batch.",
    "在累积梯度的各部分之间同步统计量，得到的就是整批的统计量，即整批各行的结果。"
    "GroupNorm 和冻结统计量与归一化批量无关。",
)
FINE_TUNE: Final = Text(
    "Both arms are trained on at a tenth of the rate chosen for BatchNorm, which was not tuned.",
    "两组都以为 BatchNorm 选出的学习率的十分之一继续训练，这个比例没有调过。",
)
CIFAR: Final = Text(
    "The images are CIFAR-10's, re-encoded as JPEG. One short run for each rate chose the learning "
    "rates, on held-out training images; all variants of RBN have RBN's, and images of equal mean "
    "and contrast the rates of the others.",
    "图像为重新编码成 JPEG 的 CIFAR-10。学习率由留出的训练图像上每个候选一次的短训练选出；"
    "RBN 的各变体使用 RBN 的学习率，均值与对比度统一的图像使用与其他图像相同的学习率。",
)
IMAGE_MOMENTS: Final = Text(
    "“Mean and contrast set”: the network gives every image the training images' average mean and "
    "standard deviation, one number each over channels and positions, after crops, flips and "
    "corruptions.",
    "“图像的均值与对比度已统一”：网络首先把每张图像的均值和标准差（各为遍及通道与位置的一个数）"
    "设为训练图像的平均值，在裁剪、翻转和退化之后进行。",
)
PAIRED_T: Final = Text(
    "The exact sign-flip test of five seeds cannot fall below 0.0625: the primary comparisons are "
    "judged by the paired t test, which takes the differences as normally distributed.",
    "只有五个种子时，精确的符号翻转检验不可能低于 0.0625：主要比较采用配对 t 检验，"
    "它假定差值服从正态分布。",
)
