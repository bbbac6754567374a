"""Every norm in every network."""

from typing import Final

from rbnorm_lab.studies import learnt, limits
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.studies.variants import arms_of
from rbnorm_lab.text import Text

NETWORK_NORMS: Final = ("bn", "gn", "ln", "ln2d", "in", "rbn")


def study(settings: Settings, rate: Rates) -> Study:
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
        settings.all_seeds,
        sections=learnt.sections,
    )
