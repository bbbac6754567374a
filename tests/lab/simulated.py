"""Studies with records whose truth is known."""

from dataclasses import replace
from pathlib import Path

from support import CONFIG, make_record

from rbnorm_lab.config import CONDITIONS
from rbnorm_lab.records import Failure
from rbnorm_lab.store import Store
from rbnorm_lab.studies.results import collect
from rbnorm_lab.studies.study import Arm, Comparison, Study
from rbnorm_lab.text import Text

SEEDS = tuple(range(6))
ARMS = {"bn": None, "gn": "bn", "rbn": "bn"}


def make_study(primary=(), groups=("whole",), seeds=SEEDS, **values):
    """Three norms in each group; groups differ in batch size."""
    arms = tuple(
        Arm(group, label, replace(CONFIG, norm=label, batch_size=64 // (1 + i)), baseline)
        for i, group in enumerate(groups)
        for label, baseline in ARMS.items()
    )
    text = Text("Norms compared", "归一化的比较")
    question = Text("Is <RBN> better?", "<RBN> 更好吗？")
    limits = (Text("A simulation.", "一次模拟。"),)
    return Study("simulated", text, question, limits, arms, seeds, primary, **values)


def comparison(treatment="rbn", measure="clean", group="whole"):
    name = Text(f"the {measure} one", f"{measure} 项")
    return Comparison(group, treatment, "bn", measure, called=name)


def corrupted(value, **kinds):
    """Accuracies under all conditions: ``value``, and where a kind is named, its own."""
    return {name: kinds.get(name.partition("/")[0], value) for name in CONDITIONS}


def records_of(study, accuracy, shifted=lambda arm, seed: {}):
    """Records by key; ``accuracy(arm, seed)`` is None for a run that was not made."""
    records = {}
    for arm in study.arms:
        for seed in study.seeds:
            value = accuracy(arm, seed)
            if value is not None:
                config = replace(arm.config, seed=seed)
                record = replace(make_record(value), config=config, shifted=shifted(arm, seed))
                records[config.key] = record
    return records


def failures_of(study, label, seeds, error="RuntimeError: too large"):
    runs = [replace(a.config, seed=s) for a in study.arms if a.label == label for s in seeds]
    when = "2026-01-01T00:00:00+00:00"
    return {run.key: Failure(run, error, "Traceback", {}, when) for run in runs}


def results_of(study, records=(), failures=(), folder=Path("nowhere")):
    """What a study finds in these records and failures, by key."""
    store = Store(folder)
    store.records |= dict(records)
    store.failures |= dict(failures)
    return collect(study, store)
