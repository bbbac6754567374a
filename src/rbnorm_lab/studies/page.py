"""The page of a study, redrawn from its records alone: one file in English and Chinese."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup
from matplotlib.figure import Figure

from rbnorm_lab import templates
from rbnorm_lab.analysis import p_value, with_margin
from rbnorm_lab.studies.answer import MEASURES, STATISTICS, answer, bracketed
from rbnorm_lab.studies.arms import Arm
from rbnorm_lab.studies.corrupted import controls, corruption_tables
from rbnorm_lab.studies.figure import study_figure
from rbnorm_lab.studies.learnt import Learnt, learnt, learnt_figure, said
from rbnorm_lab.studies.results import Results, value_of
from rbnorm_lab.studies.tuning import Candidate
from rbnorm_lab.studies.words import chinese
from rbnorm_lab.text import Text

LEARNT: Final = "learnt"
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


def write_page(results: Results, tuning: Sequence[Candidate], out: Path, command: str) -> None:
    """Draw ``report.html`` and each figure's files.

    Args:
        results: What the study found.
        tuning: The learning rates that were tried.
        out: The folder to write to.
        command: The command line that makes this page again.
    """

    def draw(narrow: bool) -> dict[str, Figure]:
        figures = {
            measure: study_figure(results, measure, narrow=narrow) for measure in results.measures()
        }
        drawn_learnt = learnt_figure(_learnt(results), narrow=narrow)
        return {**figures, LEARNT: drawn_learnt} if drawn_learnt else figures

    templates.write_page(draw, lambda drawn: page(results, tuning, drawn, command), out, chinese)


def page(
    results: Results, tuning: Sequence[Candidate], figures: dict[str, Markup], command: str
) -> str:
    """The page as text; ``figures`` are drawings by measure."""
    study, records = results.study, results.records
    common, own = settings(study.arms)
    return templates.render(
        "study.html",
        study=study,
        results=results,
        records=records,
        answer=answer(study, results),
        figures={name: figure for name, figure in figures.items() if name != LEARNT},
        learnt_figure=figures.get(LEARNT),
        learnt=said(_learnt(results)),
        words=MEASURES,
        statistics=STATISTICS,
        kinds=KINDS,
        corruption_tables=corruption_tables(results.arms),
        controls=controls(results.arms),
        tuning=tuning,
        common=common,
        own=own,
        facts=templates.environments(records),
        commands=[command],
        with_margin=with_margin,
        bracketed=bracketed,
        p_value=p_value,
        percent=percent,
        value_of=value_of,
        chinese=chinese,
    )


def _learnt(results: Results) -> list[Learnt]:
    """What RBN learnt, on the page of the networks."""
    return learnt(results) if results.study.name == "networks" else []


def percent(share: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.2f}"


def settings(arms: Sequence[Arm]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings that all arms share, and for every arm the others; the seed is neither."""
    configs = [{k: v for k, v in asdict(arm.config).items() if k != "seed"} for arm in arms]
    if not configs:
        return {}, []
    common = {k: v for k, v in configs[0].items() if all(config[k] == v for config in configs)}
    own = [{k: v for k, v in config.items() if k not in common} for config in configs]
    return common, own
