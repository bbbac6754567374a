"""The page of the study, redrawn from its records alone."""

from pathlib import Path
from typing import Any, Final

from markupsafe import Markup
from matplotlib.figure import Figure

from rbnorm_lab.analysis import p_value, with_margin
from rbnorm_lab.domains.answer import domains_answer
from rbnorm_lab.domains.config import TRAINED
from rbnorm_lab.domains.figure import remedies_figure, targets_figure
from rbnorm_lab.domains.plan import ARMS, BN, RBN, DomainSettings
from rbnorm_lab.domains.results import Blocked, DomainResults, settings_of_records
from rbnorm_lab.domains.store import DomainStore
from rbnorm_lab.domains.testing import (
    MIXED,
    PRIOR,
    RE_ESTIMATED,
    SIZES,
    STATISTICS,
    TENT,
    TEST_BATCH,
)
from rbnorm_lab.folders import make_folder
from rbnorm_lab.progress import terminal
from rbnorm_lab.studies.answer import bracketed
from rbnorm_lab.studies.arms import Study
from rbnorm_lab.studies.command import reproducing
from rbnorm_lab.templates import PAGE, environments, render, write_page
from rbnorm_lab.text import Text

NAME: Final = "domains"
WORDS: Final = {
    TRAINED: Text("as trained", "训练时的统计量"),
    RE_ESTIMATED: Text("re-estimated on the target", "在目标域上重新估计"),
    **{
        name: Text(f"of each test batch of {size}", f"每 {size} 张测试图像一批")
        for size, name in TEST_BATCH.items()
    },
    **{
        name: Text(
            f"running, as {PRIOR} images, and of each test batch of {size}",
            f"滑动统计量（按 {PRIOR} 张图像计）与每 {size} 张测试图像混合",
        )
        for size, name in MIXED.items()
    },
    TENT: Text(f"TENT, test batches of {SIZES[0]}", f"TENT，每 {SIZES[0]} 张测试图像一批"),
}
_ELSEWHERE: Final = ("--out", "--device", "--processes", "--minutes", "--weights")
LIMITS: Final = (
    Text(
        "One network, images of 96 x 96 that were scaled and re-encoded twice, few epochs: "
        "differences between arms are the result, not the accuracies.",
        "只有一个网络；图像为 96 x 96，经过两次缩放与重新编码；训练轮数少：应看各组之间的差异，"
        "而非准确率本身。",
    ),
    Text(
        "The interval has the four targets as fixed blocks: it shows the spread over seeds, not "
        "over other domains.",
        "区间以四个目标域为固定区组：只反映随机种子之间的差异，不反映换成其他域的差异。",
    ),
    Text(
        "Every arm's learning rate was chosen on held-out source images of each target's sources; "
        "centring only and one BN arm have RBN's.",
        "各组的学习率在源域的留出图像上按目标域分别选出；"
        "“仅中心化”和其中一组 BN 使用 RBN 的学习率。",
    ),
    Text(
        "Test batches are random mixtures of the target's classes; a camera's are not.",
        "测试批由目标域各类图像随机混合而成；实际相机的批次并非如此。",
    ),
)


def draw(out: Path, defaults: DomainSettings, command: str) -> None:
    """Draw ``report.html`` and the figures' files, and print the answer.

    Args:
        out: Folder of the records, and of a folder for the page.
        defaults: The settings, as far as the records do not show them.
        command: The command line that makes this page again.
    """
    store = DomainStore(out)
    settings = settings_of_records(store.records, defaults)
    results = DomainResults(settings, store.records, store.failures)
    folder = out / NAME
    make_folder(folder)
    write_page(
        lambda narrow: _figures(results, narrow=narrow),
        lambda drawn: page(results, drawn, command),
        folder,
        _chinese,
    )
    console = terminal()
    console.print(f"{NAME}: {domains_answer(results).en}")
    if results.failures:
        console.print(f"{len(results.failures)} runs failed; the page says why.")
    console.print(f"Report: {folder / PAGE}", soft_wrap=True)


def _figures(results: DomainResults, *, narrow: bool) -> dict[str, Figure]:
    possible = {
        "targets": targets_figure(results, narrow=narrow),
        "remedies": remedies_figure(results, narrow=narrow),
    }
    return {name: figure for name, figure in possible.items() if figure}


def page(results: DomainResults, drawn: dict[str, Markup], command: str) -> str:
    """The page as text; ``drawn`` are its figures by name."""
    records: Any = results.records  # with the fields that every record of the lab has
    study = Study(
        NAME,
        Text("A domain that was not trained on", "未参与训练的域"),
        Text(
            "A pretrained network is fine-tuned on some domains and deployed on another: does RBN, "
            "or another remedy for BatchNorm, keep more of its accuracy?",
            "预训练网络在若干域上微调，再部署到另一个域：RBN 或其他针对 BatchNorm 的补救办法"
            "能否保住更多准确率？",
        ),
        LIMITS,
        (),
        tuple(range(results.settings.seeds)),
    )
    return render(
        "domains.html",
        study=study,
        results=results,
        arms=ARMS,
        bn=BN,
        rbn=RBN,
        statistics=[name for name in STATISTICS if results.accuracy(BN, name)],
        words=WORDS,
        answer=domains_answer(results),
        figures=drawn,
        facts=environments(records),
        commands=[reproducing(command, _ELSEWHERE, ("--no-run", "--cut", "--keep-models"))],
        bracketed=bracketed,
        accuracy=accuracy,
        p_value=p_value,
    )


def _chinese(words: str) -> str:
    """What stands in a figure in Chinese, in the words of the page."""
    known = {
        "all targets": "全部目标域",
        "minus BN (points)": "减 BN（百分点）",
        "accuracy on the target (%)": "目标域准确率（%）",
        **{arm.text.en: arm.text.zh for arm in ARMS},
        **{name: text.zh for name, text in WORDS.items()},
        # the margin has room for no more
        **{name: f"混合，每 {size} 张图像一批" for size, name in MIXED.items()},
        TENT: f"TENT，每 {SIZES[0]} 张一批",
    }
    return known.get(words, words)


def accuracy(found: Blocked | None) -> str:
    """A mean of shares in percent, with half the width of its interval."""
    return "–" if found is None else with_margin(found, 1)
