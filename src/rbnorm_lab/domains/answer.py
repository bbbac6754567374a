"""What the study found, in one sentence."""

from rbnorm_lab.analysis import p_value
from rbnorm_lab.domains.plan import AT_RATE_OF_RBN, BN, CENTRING, FROZEN, RBN
from rbnorm_lab.domains.results import Blocked, DomainResults
from rbnorm_lab.domains.testing import RE_ESTIMATED, SIZES, TENT, TEST_BATCH
from rbnorm_lab.studies.answer import NOT_RUN, bracketed
from rbnorm_lab.text import Text, joined


def domains_answer(results: DomainResults) -> Text:
    """The verdict of the primary comparison, then what changes its meaning, with intervals."""
    primary = results.difference(RBN, BN)
    if primary is None:
        return NOT_RUN
    verdict = _verdict(primary)
    p = p_value(primary.p)
    clauses = [
        Text(
            f"{verdict.en} on a domain it was not trained on ({_evidence(primary).en}, "
            f"sign-flip p = {p})",
            f"在未参与训练的域上，{verdict.zh}（{_evidence(primary).zh}，符号翻转检验 p = {p}）",
        )
    ]
    others = (
        (RBN, AT_RATE_OF_RBN, None, "RBN minus BN at RBN's rates", "RBN 减去用 RBN 学习率的 BN"),
        (CENTRING, BN, None, "centring only minus BN", "仅中心化减 BN"),
        (FROZEN, BN, None, "frozen minus batch statistics of BN", "BN 冻结统计量减 BN"),
        (BN, BN, RE_ESTIMATED, "BN with statistics re-estimated on the target minus BN",
         "BN 在目标域上重新估计统计量减 BN"),
        (BN, BN, TEST_BATCH[SIZES[0]], f"BN with statistics of {SIZES[0]} test images minus BN",
         f"BN 用 {SIZES[0]} 张测试图像的统计量减 BN"),
        (BN, BN, TENT, "BN with TENT minus BN", "BN 用 TENT 减 BN"),
    )  # fmt: skip
    for treatment, control, statistics, en, zh in others:
        found = (
            results.difference(treatment, control)
            if statistics is None
            else results.difference(treatment, control, statistics, "trained")
        )
        if found is not None:
            clauses.append(Text(f"{en}: {bracketed(found)}", f"{zh}：{bracketed(found)}"))
    done, planned = len(results.records), len(results.plan.ready())
    if done < planned:
        clauses.append(Text(f"{done} of {planned} runs", f"{planned} 次运行中完成了 {done} 次"))
    said = joined(clauses)
    return Text(f"{said.en}.", f"{said.zh}。")


def _verdict(primary: Blocked) -> Text:
    if not primary.detectable:
        return Text("No detectable difference between RBN and BN", "RBN 与 BN 之间没有可检测的差异")
    more = primary.mean > 0
    return Text(
        f"RBN is {'more' if more else 'less'} accurate than BN",
        f"RBN 的准确率{'高于' if more else '低于'} BN",
    )


def _evidence(found: Blocked) -> Text:
    pairs, blocks = len(found.values), len(found.blocks)
    return Text(
        f"{bracketed(found)} points, 95 % interval, {pairs} pairs in {blocks} targets",
        f"{bracketed(found)} 个百分点，95% 区间，{blocks} 个目标域共 {pairs} 对",
    )
