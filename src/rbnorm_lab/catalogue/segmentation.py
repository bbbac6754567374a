"""A pretrained network for street scenes, where few images are normalised together."""

from typing import Any, Final

from rbnorm_lab.camvid import CAMVID
from rbnorm_lab.errors import UsageError
from rbnorm_lab.names import LRASPP
from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Arm, Settings, Study
from rbnorm_lab.studies.variants import (
    arms_of,
    comparisons_of,
)
from rbnorm_lab.text import Text

OWN_DATA: Final = True
SMALL_BATCH: Final = 2

SEGMENTATION_NORMS: Final = {"bn": "bn", "rbn": "rbn:preserve=yes", "gn": "gn"}

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

words.PHRASES.update(
    {
        ", video order": "，视频顺序",
    }
)


def study(settings: Settings, rate: Rates) -> Study:
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
        (SCENES, limits.SEEDS_ONLY, limits.EXPLORATORY, SYNCHRONISED),
        tuple(arms),
        settings.all_seeds,
        others=tuple(
            comparison
            for group, treatment, control in pairs
            for comparison in comparisons_of(group, [(treatment, control, "iou")])
        ),
    )
