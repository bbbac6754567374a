"""The studies: the question of each, what is run for it, and its limits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rbnorm_cli.names import LRASPP
from rbnorm_lab.camvid import CAMVID
from rbnorm_lab.errors import UsageError
from rbnorm_lab.studies import limits
from rbnorm_lab.studies.arms import Arm, Comparison, Rate, Settings, Study
from rbnorm_lab.studies.costs import cost
from rbnorm_lab.studies.variants import (
    ABLATION,
    INIT,
    NETWORK_NORMS,
    SEGMENTATION_NORMS,
    SHIFT_NORMS,
    arms_of,
    at_rate_of_batch,
    at_rate_of_rbn,
    comparisons_of,
)
from rbnorm_lab.text import Text

SMALL_BATCH: Final = 2
_BATCHES: Final = (2, 4, 8)
_SET: Final = ", mean and contrast set"
_FINE_TUNE: Final = 0.1  # of the learning rate of training


def primary(settings: Settings, rate: Rate) -> Study:
    """The comparisons that the project's claims rest on."""
    whole, small = "whole batch", f"normalisation batch {SMALL_BATCH}"
    alike = (
        *at_rate_of_rbn(settings, rate, whole, "bn"),
        *at_rate_of_rbn(settings, rate, small, "bn", norm_batch=SMALL_BATCH),
    )
    arms = (
        *arms_of(settings, rate, whole, {"bn": "bn", "rbn": "rbn"}),
        *arms_of(settings, rate, small, {"bn": "bn", "rbn": "rbn"}, norm_batch=SMALL_BATCH),
        *alike,
    )
    comparisons = (
        (whole, "clean", "accuracy on clean test images", "干净测试图像上的准确率"),
        (whole, "shifted", "mean accuracy under corruptions", "各种图像退化下的平均准确率"),
        (
            small,
            "clean",
            f"accuracy on clean test images, {SMALL_BATCH} images normalised together",
            f"归一化批量为 {SMALL_BATCH} 时干净测试图像上的准确率",
        ),
    )
    return Study(
        "primary",
        Text("RBN against BatchNorm", "RBN 与 BatchNorm 的对比"),
        Text(
            "Is RBN more accurate than BatchNorm on clean images, on corrupted images, and where "
            "batch statistics are those of two images?",
            "在干净图像上、在退化图像上，以及当批统计量只来自两张图像时，"
            "RBN 是否比 BatchNorm 更准确？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.RATES, limits.BATCHES, limits.SHIFT),
        arms,
        _seeds(settings),
        tuple(
            Comparison(Text(en, zh), group, "rbn", "bn", measure)
            for group, measure, en, zh in comparisons
        ),
        others=tuple(
            comparison
            for arm in alike
            for measure in (("clean",) if arm.config.norm_batch else ("clean", "shifted"))
            for comparison in comparisons_of(arm.group, [("rbn", arm.label, measure)])
        ),
    )


def networks(settings: Settings, rate: Rate) -> Study:
    """Every norm in every network."""

    def own(model: str, norm: str) -> float:
        return rate(settings.model, norm)

    def of_bn(model: str, norm: str) -> float:
        return own(model, "bn")

    norms = {norm: norm for norm in NETWORK_NORMS}
    others = {f"{n}, BatchNorm's learning rate": n for n in norms if own("", n) != own("", "bn")}
    arms = [
        arm
        for model in dict.fromkeys((settings.model, *settings.networks))
        for arm in (
            *arms_of(settings, own, model, norms, model=model),
            *arms_of(settings, of_bn, model, others, baseline="bn", model=model),
        )
    ]
    return Study(
        "networks",
        Text("Norms in several networks", "不同网络中的各种归一化"),
        Text(
            "Does RBN improve mainstream networks, compared with BatchNorm and with other norms?",
            "与 BatchNorm 及其他归一化相比，RBN 是否能提升主流网络？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.EXPLORATORY),
        tuple(arms),
        _seeds(settings),
    )


def ablation(settings: Settings, rate: Rate) -> Study:
    """What each part of RBN contributes."""
    group, measures = "whole batch", ("clean", "shifted")
    alike = at_rate_of_rbn(settings, rate, group, "neither")
    pairs = [("both", half) for half in ("centring only", "scaling only")]
    pairs += [("both", arm.label) for arm in alike]
    pairs += [(label, "both") for label in ABLATION if ":" in label]
    return Study(
        "ablation",
        Text("What each part of RBN contributes", "RBN 各部分的贡献"),
        Text(
            "Do centring and scaling both contribute, and do the statistic and the restricting "
            "function matter?",
            "中心化校准与缩放校准是否都有贡献？统计量与限制函数的选择是否重要？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.RBN_RATE,
            limits.EXPLORATORY,
            limits.SHIFT,
        ),
        (*arms_of(settings, rate, group, ABLATION), *alike),
        _seeds(settings),
        others=comparisons_of(group, [(*pair, m) for pair in pairs for m in measures]),
    )


def init(settings: Settings, rate: Rate) -> Study:
    """How the calibration should begin, and whether it should decay."""
    group = "whole batch"
    arms = arms_of(settings, rate, group, {"bn": "bn", **INIT}, baseline="w_b = 1")
    free = settings.config(
        "rbn",
        rate(settings.model, "rbn"),
        shift="trained" if settings.corrupted else "none",
        decay_calibration=False,
    )
    return Study(
        "init",
        Text("How the calibration should begin", "校准参数的初始化"),
        Text(
            "Does it matter where the gate's bias w_b and weight w_v begin, whether gamma "
            "compensates for the initial gate, and whether the calibration decays?",
            "门控偏置 w_b 与权重 w_v 的初值、γ 是否补偿初始门控、"
            "校准参数是否做权重衰减，这些是否重要？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.RBN_RATE, limits.EXPLORATORY),
        (*arms, Arm(group, "no decay of the calibration", free, "w_b = 1")),
        _seeds(settings),
    )


def batch_size(settings: Settings, rate: Rate) -> Study:
    """Few images normalised together, at a constant number of images per optimiser step."""
    norms = {"bn": "bn", "rbn": "rbn"}
    arms = list(arms_of(settings, rate, "whole batch", {**norms, "gn": "gn"}))
    others: list[Comparison] = []
    for size in (size for size in reversed(_BATCHES) if size < settings.run.batch_size):
        group = f"normalisation batch {size}"
        own = [*arms_of(settings, rate, group, norms, norm_batch=size)]
        own += at_rate_of_rbn(settings, rate, group, "bn", norm_batch=size)
        labels, new = at_rate_of_batch(settings, rate, group, own, size)
        pairs = [(labels["rbn"], labels["bn"])]
        pairs += [("rbn", arm.label) for arm in reversed(own) if arm.config.norm == "bn"]
        by_class = f"{group}, sorted by class"
        own += new
        own += arms_of(settings, rate, by_class, norms, norm_batch=size, sorted_batches=True)
        arms += own
        others = [
            *comparisons_of(group, [(*pair, "clean") for pair in dict.fromkeys(pairs)]),
            *comparisons_of(by_class, [("rbn", "bn", "clean")]),
            *others,
        ]
    return Study(
        "batch-size",
        Text("Few images normalised together", "小归一化批量"),
        Text(
            "Does RBN help where the batch statistics are those of few images, or of images of few "
            "classes, while the optimiser sees the same batches?",
            "当批统计量只来自少数图像或少数类别，而优化器看到的批次不变时，RBN 是否有帮助？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.EXPLORATORY,
            limits.BATCHES,
            Text(
                "GroupNorm does not depend on which images stand together: its row for the whole "
                "batch holds for all.",
                "GroupNorm 与哪些图像放在一起无关：其整批那一行对所有归一化批量都成立。",
            ),
        ),
        tuple(arms),
        _seeds(settings),
        others=tuple(others),
    )


def shift(settings: Settings, rate: Rate) -> Study:
    """Corrupted test images, with other statistics as controls."""
    arms = arms_of(settings, rate, "whole batch", {norm: norm for norm in SHIFT_NORMS})
    return Study(
        "shift",
        Text("Corrupted test images", "退化的测试图像"),
        Text(
            "Is RBN more accurate than BatchNorm where the test images do not follow the training "
            "distribution, and would other statistics do the same for BatchNorm?",
            "当测试图像不服从训练分布时，RBN 是否比 BatchNorm 更准确？"
            "改用其他统计量能否让 BatchNorm 达到同样效果？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.RBN_RATE,
            limits.EXPLORATORY,
            limits.SHIFT,
        ),
        arms,
        _seeds(settings),
        others=comparisons_of(
            "whole batch",
            [
                ("rbn", "bn", "shifted"),
                ("rbn", "gn", "shifted"),
                ("rbn", "bn", "shifted", "test-batch"),
                ("rbn", "gn", "clean"),
            ],
        ),
        controls=True,
    )


def segmentation(settings: Settings, rate: Rate) -> Study:
    """A pretrained network for street scenes, where few images are normalised together."""
    if (settings.run.data, settings.model) != (CAMVID, LRASPP):
        raise UsageError(
            "the study segmentation needs --data camvid --model lraspp-mobilenet-v2, with for "
            "example --batch-size 8 --rates 0.01 0.03"
        )
    groups: dict[str, dict[str, Any]] = {
        "whole batch": {},
        f"normalisation batch {SMALL_BATCH}": {"norm_batch": SMALL_BATCH},
    }

    def frozen_rate(model: str, norm: str) -> float:
        return rate(model, norm, frozen=True)

    arms: list[Arm] = []
    for order, in_order in (("", False), (", video order", True)):
        for group, values in groups.items():
            own = {**values, "in_order": in_order, "shift": "none"}
            norms = {n: s for n, s in SEGMENTATION_NORMS.items() if n != "gn" or not values}
            arms += arms_of(settings, rate, group + order, norms, **own)
            if not values:
                kept = {"bn, frozen statistics": "bn"}
                arms += arms_of(
                    settings, frozen_rate, group + order, kept, baseline="bn", frozen=True, **own
                )
    small = f"normalisation batch {SMALL_BATCH}"
    pairs = [(small, "rbn", "bn"), ("whole batch", "rbn", "bn")]
    pairs += [(f"{small}, video order", "rbn", "bn")]
    pairs += [("whole batch, video order", "bn, frozen statistics", "bn")]
    return Study(
        "segmentation",
        Text("Street scenes", "街景分割"),
        Text(
            "Does RBN help a segmentation network whose batches are small or, as frames of a "
            "video, alike?",
            "当批次很小，或批内是同一视频中相似的画面时，RBN 对分割网络是否有帮助？",
        ),
        (limits.SCENES, limits.SEEDS_ONLY, limits.EXPLORATORY, limits.SYNCHRONISED),
        tuple(arms),
        _seeds(settings),
        others=tuple(
            comparison
            for group, treatment, control in pairs
            for comparison in comparisons_of(group, [(treatment, control, "iou")])
        ),
    )


def cifar(settings: Settings, rate: Rate) -> Study:
    """A network that readers know, on all of its images, and images of equal mean and contrast."""
    group, few = "whole batch", 3

    def arm(label: str, norm: str, lr_of: str, seeds: int | None = None, **values: Any) -> Arm:
        baseline = f"bn{_SET}" if values.get("match_moments") else "bn"
        shift = "whole" if values or norm not in ("bn", "rbn") else "whole-controls"
        values["shift"] = shift if settings.corrupted else "none"
        config = settings.config(norm, rate(settings.model, lr_of), **values)
        return Arm(group, label, config, None if label == "bn" else baseline, seeds)

    arms = [
        arm("bn", "bn", "bn"),
        arm("rbn", "rbn", "rbn"),
        replace(arm(f"bn{_SET}", "bn", "bn", match_moments=True), baseline="bn"),
        arm(f"rbn{_SET}", "rbn", "rbn", match_moments=True),
        arm("centring only", "rbn-center", "rbn", few),
        arm(
            "rbn, w_m begins at -0.9 in the first layer",
            "rbn:first_center_weight_init=-0.9",
            "rbn",
            few,
        ),
        arm("gn", "gn", "gn", few),
    ]
    for norm in ("rbn", "gn"):
        if rate(settings.model, norm) != rate(settings.model, "bn"):
            label = f"{norm}, BatchNorm's learning rate"
            arms.append(arm(label, norm, "bn", few))
    primary = [("rbn", "bn", "clean"), ("rbn", "bn", "shifted")]
    primary += [(f"rbn{_SET}", f"bn{_SET}", "shifted")]
    others = [(f"bn{_SET}", "bn", "shifted"), ("rbn", f"bn{_SET}", "shifted")]
    others += [(f"bn{_SET}", "bn", "clean"), ("gn", "bn", "clean"), ("gn", "bn", "shifted")]
    return Study(
        "cifar",
        Text("A whole training on CIFAR-10", "CIFAR-10 上的完整训练"),
        Text(
            "Does RBN help a network that reaches the accuracy it is known for, on clean and on "
            "corrupted images, and also where every image's own mean and contrast are equal?",
            "当网络达到公认的准确率时，RBN 在干净图像和退化图像上是否有帮助？"
            "当每张图像自身的均值与对比度都已统一时，是否仍有帮助？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.CIFAR,
            limits.IMAGE_MOMENTS,
            limits.PAIRED_T,
        ),
        tuple(arms),
        _seeds(settings),
        comparisons_of(group, primary),
        others=comparisons_of(group, others),
        controls=settings.corrupted,
        paired_t=True,
    )


def fine_tune(settings: Settings, rate: Rate) -> Study:
    """A network trained with BatchNorm, converted and trained on."""
    trained = rate(settings.model, "bn")
    values = {
        "pretrain_epochs": settings.run.epochs,
        "pretrain_lr": trained,
        "shift": "trained" if settings.corrupted else "none",
    }
    epochs = max(1, settings.run.epochs // 3)
    arms = tuple(
        Arm(
            "fine-tuned",
            label,
            settings.config(norm, _FINE_TUNE * trained, **{**values, "epochs": epochs}),
            None if norm == "bn" else "bn",
        )
        for label, norm in (("bn", "bn"), ("converted to rbn", "rbn:preserve=yes"))
    )
    return Study(
        "fine-tune",
        Text("From BatchNorm to RBN by fine-tuning", "从 BatchNorm 微调到 RBN"),
        Text(
            "Does a network trained with BatchNorm gain by converting it, with its function "
            "preserved, and fine-tuning?",
            "把用 BatchNorm 训练好的网络在保持函数不变的前提下转换为 RBN 并微调，是否有收益？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.EXPLORATORY, limits.FINE_TUNE),
        arms,
        _seeds(settings),
    )


CATALOGUE: Final[dict[str, Callable[[Settings, Rate], Study]]] = {
    "primary": primary,
    "ablation": ablation,
    "shift": shift,
    "batch-size": batch_size,
    "init": init,
    "fine-tune": fine_tune,
    "networks": networks,
    "segmentation": segmentation,
    "cifar": cifar,
    "cost": cost,
}
"""Every study by name, in the order in which ``rbnorm study all`` runs them."""


def _seeds(settings: Settings) -> tuple[int, ...]:
    return tuple(range(settings.seeds))
