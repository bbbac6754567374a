"""The norms and the variants of RBN that the studies compare, as arms."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Arm, Comparison, Settings

SHIFT_NORMS: Final = ("bn", "rbn", "rbn-center", "rbn-scale", "gn")
MATCHED: Final = ", mean and contrast set"
"""Ends the label of an arm on images whose own mean and contrast are set."""


def arms_of(
    settings: Settings,
    rate: Callable[[str, str], float],
    group: str,
    norms: dict[str, str],
    *,
    baseline: str | None = None,
    **values: Any,
) -> tuple[Arm, ...]:
    """One arm for every norm, each paired with the baseline.

    Args:
        settings: What the studies share.
        rate: The learning rate of a model and a norm.
        group: The arms' group.
        norms: The norms by label.
        baseline: Label of the baseline; None for the one that is BatchNorm.
        values: Further fields of the runs' config.
    """
    baseline = baseline or next((label for label, norm in norms.items() if norm == "bn"), None)
    arms = []
    for label, norm in norms.items():
        model = values.get("model", settings.model)
        config = settings.config(
            norm, rate(model, norm), **{"shift": _shift(settings, norm, values), **values}
        )
        arms.append(Arm(group, label, config, None if label == baseline else baseline))
    return tuple(arms)


def at_rate_of_rbn(
    settings: Settings, rate: Rates, group: str, baseline: str, **values: Any
) -> tuple[Arm, ...]:
    """BatchNorm at RBN's learning rate, unless that is its own: what the rate does by itself."""
    if rate(settings.model, "bn") == rate(settings.model, "rbn"):
        return ()
    label = f"{baseline}, RBN's learning rate"
    return arms_of(
        settings,
        lambda model, norm: rate(model, "rbn"),
        group,
        {label: "bn"},
        baseline=baseline,
        **values,
    )


def matched_arms(
    settings: Settings, rate: Callable[[str, str], float], group: str, baseline: str = "bn"
) -> tuple[Arm, ...]:
    """BatchNorm and RBN on images whose own mean and contrast are set, paired with an arm."""
    norms = {f"{norm}{MATCHED}": norm for norm in ("bn", "rbn")}
    return arms_of(settings, rate, group, norms, baseline=baseline, match_moments=True)


def at_rate_of_batch(
    settings: Settings, rate: Rates, group: str, arms: Sequence[Arm], size: int
) -> tuple[dict[str, str], tuple[Arm, ...]]:
    """BatchNorm and RBN at the rates chosen for so many images normalised together.

    Args:
        settings: What the studies share.
        rate: The learning rates.
        group: The arms' group.
        arms: Those of the group, of which one may have that rate already.
        size: Images that are normalised together.

    Returns:
        By norm the label of the arm with that rate, and the arms that are new.
    """
    labels, new = {}, []
    for norm in ("bn", "rbn"):
        config = settings.config(norm, rate(settings.model, norm, size), norm_batch=size)
        labels[norm] = f"{norm}, rate tuned for this batch"
        same = [arm.label for arm in arms if arm.config == config]
        if same:
            labels[norm] = same[0]
        else:
            new.append(Arm(group, labels[norm], config, "bn"))
    return labels, tuple(new)


def comparisons_of(group: str, compared: Sequence[tuple[str, ...]]) -> tuple[Comparison, ...]:
    """Comparisons within a group.

    Args:
        group: The group.
        compared: Labels of treatment and control, the measure, and the control's statistics if
            they are not those of training.
    """
    return tuple(Comparison(group, *names) for names in compared)


def _shift(settings: Settings, norm: str, values: dict[str, Any]) -> str:
    """Controls for what the study of shifts compares, so that one run serves several studies."""
    if values.get("norm_batch") or values.get("frozen") or not settings.corrupted:
        return "none"
    return "controls" if norm in SHIFT_NORMS else "trained"
