# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Representative Batch Normalization：从公式到代码 · from the formulas to the code
#
# 各节标题与介绍 RBN 的中文文章一致：推导写成张量上的断言，四种情况在真实的特征图上出现，最后一分钟内在手写数字上做消融。
#
# The headings are those of the Chinese article that explains RBN: derivations are assertions on tensors,
# the four cases appear on a real feature map, and an ablation on digits takes the last minute.
#
# 论文 paper: [Representative Batch Normalization with Feature Calibration](https://openaccess.thecvf.com/content/CVPR2021/html/Gao_Representative_Batch_Normalization_With_Feature_Calibration_CVPR_2021_paper.html)（Gao, Han, Li, Cheng, Peng, CVPR 2021）

# %%
# 在 Colab 中：克隆本仓库，切换到 notebooks 目录再运行。
# In Colab: clone the repository and change to its folder notebooks first.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("rbnorm") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "..[lab]"], check=True)

# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import Image
from torch import nn
from torch.nn import functional as F

import rbnorm
from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.explain.network import trained
from rbnorm_lab.explain.photographs import photograph_parts

torch.manual_seed(0)


def same(left, right):
    """恒等式成立，误差不超过双精度舍入。The identity holds to rounding in double precision."""
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


# %% [markdown]
# ## 引言 · Introduction
#
# BatchNorm 用批次的均值和方差做中心化与缩放，忽视了各个实例的区别。RBN 在这两步上各加一个依赖实例的校准。
#
# BatchNorm centres and scales by the mean and the variance of a batch and ignores what tells its
# instances apart. RBN adds to each of the two steps a calibration that depends on the instance.
#
# $X$ 的形状是 (N, C, H, W)；每个实例、每个通道有自己的均值 $K_m$。
# $X$ has the shape (N, C, H, W); every instance has a mean $K_m$ of its own in every channel.

# %%
X = 2 * torch.randn(6, 4, 5, 7, dtype=torch.float64) + torch.randn(6, 4, 1, 1, dtype=torch.float64)


def E(x):
    """对 N、H、W 求均值，每个通道一个数。The mean over N, H and W: one number per channel."""
    return x.mean((0, 2, 3), keepdim=True)


def Var(x):
    """对 N、H、W 求方差（有偏）。The biased variance over N, H and W."""
    return x.var((0, 2, 3), unbiased=False, keepdim=True)


def K(x):
    """全局平均池化：每个实例、每个通道一个数。Global average pooling: one number per instance and channel."""
    return x.mean((2, 3), keepdim=True)


# %% [markdown]
# ## BN的缺点 · What BatchNorm lacks
#
# $$BN(X) = \gamma\,\frac{X - E(X)}{\sqrt{Var(X) + \epsilon}} + \beta$$
#
# 前提是不同实例的特征服从相同的分布。测试时用的是滑动均值和滑动方差；若测试图像不服从训练集的分布，会出现四种情况。
# 下面用真实的网络和照片：一个 ResNet-8 学习分辨两张照片的局部（几秒），取它第一个归一化层的输入。
#
# It assumes that the features of all instances follow one distribution. Test images are normalised by
# running statistics; images unlike the training set then go wrong in one of four ways. Here is a real
# network on real photographs: a ResNet-8 learns in a few seconds to tell parts of two photographs apart,
# and we look at the input of its first norm.

# %%
data = photograph_parts()
network, accuracy = trained(data)
print(f"留出图块上的准确率 accuracy on held-out parts: {accuracy:.1%}")

with torch.no_grad():
    seen = network.conv1(data.train.tensors[0]).double()
running_mean, running_var = E(seen), Var(seen)

std = torch.tensor(data.std)[:, None, None]
with torch.no_grad():
    # 亮度最能改变其均值的通道，及一张均值和方差都典型的照片
    # the channel that more light moves most, and a photograph of typical mean and variance
    light = network.conv1((torch.ones(3, 48, 48) / std)[None]).double()
    channel = int((K(light) / running_var.sqrt()).argmax())
    parts = network.conv1(data.test.tensors[0])[:, channel].double().flatten(1)
    mu, var = running_mean.flatten()[channel], running_var.flatten()[channel]
    far = (parts.mean(1) - mu).abs() / var.sqrt()
    unlike = (parts.var(1, unbiased=False) / var).log().abs()
    photograph = data.test.tensors[0][(far + unlike).argmin()]


def feature_map(brightness=0.0, contrast=1.0):
    """第一个归一化层的输入，(1, C, H, W)。The input of the first norm."""
    with torch.no_grad():
        return network.conv1((contrast * photograph + brightness / std)[None]).double()


# %%
def offset(x):
    """实例均值与滑动均值之差，以滑动标准差为单位。How far the instance's mean lies from the running mean."""
    return ((K(x) - running_mean) / running_var.sqrt())[0, channel].item()


def ratio(x):
    """实例方差与滑动方差之比。The instance's variance in running variances."""
    return (x.var((2, 3), unbiased=False, keepdim=True) / running_var)[0, channel].item()


cases = {
    "mean below": feature_map(brightness=-0.4),
    "mean above": feature_map(brightness=+0.4),
    "variance below": feature_map(contrast=0.3),
    "variance above": feature_map(contrast=3.0),
}
assert offset(cases["mean below"]) < offset(feature_map()) - 0.5
assert offset(cases["mean above"]) > offset(feature_map()) + 0.5
assert ratio(cases["variance below"]) < 0.2 * ratio(feature_map())
assert ratio(cases["variance above"]) > 5 * ratio(feature_map())

# %% [markdown]
# 经过 BN 之后（橙色为正，紫色为负）：均值偏低时特征被移除，偏高时噪声被漏掉；方差偏小时强度过小，偏大时强度过大。
#
# After BN (orange is positive, purple negative): with a mean below the running one features are removed,
# with one above noise is let through; with a variance below the intensity is too small, above too large.

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for axes, (name, x) in zip(panels, cases.items(), strict=True):
    normalised = (x - running_mean) / (running_var + 1e-5).sqrt()
    axes.imshow(normalised[0, channel], cmap="PuOr_r", vmin=-3, vmax=3)
    axes.set_title(f"{name}\noffset {offset(x):+.2f} σ, variance × {ratio(x):.2f}", fontsize=10)
    axes.axis("off")

# %% [markdown]
# ## Representative Batch Normalization
#
# 两步：中心化校准（Centering Calibration）与缩放校准（Scaling Calibration）。
# Two steps: centering calibration and scaling calibration.
#
# ### Centering Calibration
#
# $$X_{cm} = X + w_m \odot K_m$$
#
# $w_m$ 每个通道一个数。（文章写作形状 (N, C, 1, 1)；参数的形状其实是 (1, C, 1, 1)，rbnorm 中是 (C,)。）
#
# $w_m$ is one number per channel. (The article gives it the shape (N, C, 1, 1); as a parameter it has
# (1, C, 1, 1), and (C,) in rbnorm.)

# %%
w_m = torch.randn(1, 4, 1, 1, dtype=torch.float64)
K_m = K(X)
X_cm = X + w_m * K_m

# %% [markdown]
# #### 公式推导 · Derivation
#
# $$E(X) = E(K_m), \qquad E(X_{cm}) = (1 + w_m)\,E(X), \qquad X_{cal} - X_{no} = w_m\,(K_m - E(X))$$

# %%
same(E(K_m), E(X))
same(E(X_cm), (1 + w_m) * E(X))

X_cal = X_cm - E(X_cm)
X_no = X - E(X)
same(X_cal - X_no, (w_m * (K_m - E(X))).expand_as(X))

# %% [markdown]
# $|w_m|$ 接近 0 时只依赖批统计量。$w_m > 0$ 且 $K_m > E(X)$ 时特征增强；$w_m < 0$ 且 $K_m > E(X)$ 时噪声受到抑制；反之亦然。
#
# With $|w_m|$ near 0 only the statistics of the batch count. With $w_m > 0$ and $K_m > E(X)$ the feature
# is strengthened; with $w_m < 0$ and $K_m > E(X)$ noise is suppressed; and the other way round.

# %%
above = K_m > E(X)
moved = (X_cal - X_no).mean((2, 3), keepdim=True)
assert (moved[above & (w_m > 0)] > 0).all()
assert (moved[above & (w_m < 0)] < 0).all()
assert (moved[~above & (w_m > 0)] < 0).all()
assert (moved[~above & (w_m < 0)] > 0).all()

# w_m = -1 恰好减去实例自身的均值 · takes away exactly the instance's own mean
same(K(X - K_m), torch.zeros_like(K_m))

# %% [markdown]
# 在上面的四种情况里：把均值拉回 3/4。In the first two cases above: the mean is drawn back by three quarters.

# %%
for name in ("mean below", "mean above"):
    x = cases[name]
    # 训练集上 X_cm 的均值 · the mean of X_cm over the training set: (1 + w_m) E(X)
    weight = -0.75
    calibrated = x + weight * K(x) - weight * running_mean
    print(f"{name}: {offset(x):+.2f} σ -> {offset(calibrated):+.2f} σ")
    assert abs(offset(calibrated)) < 0.3 * abs(offset(x))

# %% [markdown]
# ### Scaling Calibration
#
# 在 BN 之后、拉伸偏移之前。After BN, before the affine step:
#
# $$X_{cs} = X_s \cdot R(w_v \odot K_s + w_b), \qquad 0 < R < 1$$

# %%
w_v, w_b = torch.randn(2, 1, 4, 1, 1, dtype=torch.float64)
X_m = X_cm - E(X_cm)
X_s = X_m / (Var(X_cm) + 1e-5).sqrt()
K_s = K(X_s)
gate = torch.sigmoid(w_v * K_s + w_b)
X_cs = X_s * gate

# %% [markdown]
# #### 公式推导 · Derivation
#
# $R$ 小于 1，每个通道的方差变小。$R$ is below 1, so the variance of every channel falls:
# $Var(X_{cs}) < Var(X_s)$.

# %%
assert ((gate > 0) & (gate < 1)).all()
assert (Var(X_cs) < Var(X_s)).all()
# 单个实例：恰好是 R² 倍 · of one instance: exactly R² times
same(
    X_cs.var((2, 3), unbiased=False, keepdim=True),
    gate**2 * X_s.var((2, 3), unbiased=False, keepdim=True),
)

# %% [markdown]
# ## 整体流程 · The whole flow
#
# 四行公式与 rbnorm 的层逐数相等，训练与测试都是。The lines above equal the layer of rbnorm, in training and
# in evaluation.

# %%
gamma, beta = torch.randn(2, 1, 4, 1, 1, dtype=torch.float64)
layer = RepresentativeBatchNorm2d(4, dtype=torch.float64)
with torch.no_grad():
    layer.center_weight.copy_(w_m.flatten())
    layer.scale_weight.copy_(w_v.flatten())
    layer.scale_bias.copy_(w_b.flatten())
    layer.weight.copy_(gamma.flatten())
    layer.bias.copy_(beta.flatten())

Y = gamma * X_cs + beta
before = X.clone()
same(layer(X), Y)
same(X, before)  # 输入没有被改写 · the input is not overwritten

layer.eval()
running = layer.running_mean.view(1, 4, 1, 1), layer.running_var.view(1, 4, 1, 1)
X_s = (X_cm - running[0]) / (running[1] + 1e-5).sqrt()
same(layer(X), gamma * X_s * torch.sigmoid(w_v * K(X_s) + w_b) + beta)

# %% [markdown]
# $w_m = w_v = 0$ 时就是 BatchNorm 乘以常数 $R(w_b)$。With $w_m = w_v = 0$ it is BatchNorm times the constant
# $R(w_b)$:

# %%
fresh = RepresentativeBatchNorm2d(4, dtype=torch.float64)
same(
    fresh(X),
    torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    * F.batch_norm(X, None, None, training=True),
)

# 因此转换预训练模型时把 γ 除以它，输出不变 · so a conversion divides gamma by it, and outputs stay
model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).double().eval()
images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
expected = model(images)
same(rbnorm.convert_batchnorm(model)(images), expected)

# %% [markdown]
# ## 实验对比 · Experiments
#
# 消融：BatchNorm、只有中心化校准、只有缩放校准、两者都有；同一种子的初始权重和数据顺序相同。1797 张数字上的差异小于种子之间的差异：
# 这只说明一切都能运行；[研究的结果](../docs/results.md)有十个种子和检验。
#
# An ablation: BatchNorm, centring only, scaling only, both; every norm of a seed has the same initial
# weights and order of data. On 1,797 digits the differences are smaller than those between seeds: it shows
# that everything runs. The [studies](../docs/results.md) have ten seeds and tests.

# %%
arguments = (
    "--norms bn rbn-center rbn-scale rbn --batch-sizes 64 --seeds 2 --epochs 2 --out rbnorm-compare"
)
done = subprocess.run(
    [sys.executable, "-m", "rbnorm", "compare", *arguments.split()],
    env={**os.environ, "FORCE_COLOR": "", "COLUMNS": "100"},
    check=True,
    capture_output=True,
    text=True,
)
print(done.stdout)
Image("rbnorm-compare/clean.png", width=480)

# %% [markdown]
# ## 代码 · Code
#
# 公开的实现用 `input += ...` 做中心化：传入的张量被改写。在残差块里，捷径随后相加的就是 $X_{cm}$ 而不是 $X$。
#
# The published implementation centres with `input += ...`: the tensor it was given is overwritten. In a
# residual block the shortcut then adds $X_{cm}$ in the place of $X$.


# %%
def in_place(x):
    """写入输入的中心化。Centring that writes to its input."""
    x += w_m * K(x)
    return x


shortcut = X.clone()
wrong = in_place(shortcut) + shortcut  # 捷径已被改写 · the shortcut has changed
right = X_cm + X
same(wrong - right, (w_m * K_m).expand_as(X))

# 激活检查点会重算一遍：均值变为 (1 + w_m)² 倍 · recomputed, as activation checkpointing does
twice = X.clone()
in_place(in_place(twice))
same(E(twice), (1 + w_m) ** 2 * E(X))

# 需要梯度的叶子张量：autograd 报错 · a leaf that needs a gradient: autograd refuses
leaf = X.clone().requires_grad_()
try:
    in_place(leaf)
except RuntimeError as error:
    print("RuntimeError:", str(error).splitlines()[0])
else:
    raise AssertionError("autograd 应当报错 · should have refused")

# %% [markdown]
# ### 为什么 $w_b$ 初始化为 1 · Why $w_b$ starts at 1
#
# 通常权重初始化为 1、偏置为 0，这里相反。权重为 0 关闭校准；$w_b$ 决定剩下的常数 $R(w_b)$ 和它学得多快 $R'(w_b)$。
# 这是推理，不是测量：`rbnorm study init` 比较各种初值，运行与否见[研究的结果](../docs/results.md)。
#
# Usually a weight starts at 1 and a bias at 0; here it is the other way round. Weights of 0 switch the
# calibration off; $w_b$ decides the constant that is left, $R(w_b)$, and how fast it learns, $R'(w_b)$. That
# is reasoning, not a measurement: `rbnorm study init` compares initial values, and the
# [results](../docs/results.md) say whether it has been run.

# %%
start = torch.tensor([0.0, 1.0, 4.0])
R = torch.sigmoid(start)
for b, value, slope in zip(start.tolist(), R.tolist(), (R * (1 - R)).tolist(), strict=True):
    print(f"w_b = {b:.0f}: R = {value:.3f}, R' = {slope:.3f}")

# %% [markdown]
# ## 总结 · Conclusion
#
# RBN 把批统计量与实例自身的特征结合起来，每层只多三个参数向量。它何时有用、何时不该用，见 [README](../README.zh-CN.md)。
#
# RBN joins the statistics of the batch with the instance's own features, for three more vectors of
# parameters per layer. When it helps and when not to use it: [README](../README.md).
