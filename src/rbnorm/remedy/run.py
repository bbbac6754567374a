"""``remedies``: a model, two data sets, and what each remedy wins back on the second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rbnorm.diagnosis.passes import Forward, call, normalisers, run, unchanged
from rbnorm.remedy.named import named_layers, own_shifts
from rbnorm.remedy.result import Remedies, Remedy, ranked
from rbnorm.remedy.scores import Collector, Metric, Scores, agreement, interval
from rbnorm.remedy.statistics import Rebatched
from rbnorm.remedy.trials import (
    FineTuning,
    Trial,
    as_it_is,
    fine_tuned,
    has_tent,
    statistics_trials,
    tent,
)

_SORTED = 0.5  # share of neighbours of one class that shuffled data with two classes has


class _Data(NamedTuple):
    """A data set; what its instances look like at every pass, so that pairs are pairs."""

    name: str
    batches: Iterable[Any]
    seen: list[Tensor]


class _Fingerprint:
    """A number for every instance of a pass; None where batches are no tensors."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def __call__(self, batch: Any) -> None:
        inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        if isinstance(inputs, Tensor):
            self.parts.append(inputs.flatten(1).double().sum(1).cpu())

    def value(self) -> Tensor:
        return torch.cat(self.parts) if self.parts else torch.empty(0, dtype=torch.float64)


def _measured(
    model: nn.Module, forward: Forward, data: _Data, size: int | None, metric: Metric | None
) -> Scores:
    collect, seen = Collector(metric), _Fingerprint()

    def on_output(batch: Any, output: Any) -> None:
        collect(batch, output)
        seen(batch)

    batches = data.batches if size is None else Rebatched(data.batches, size)
    run(model, batches, forward, {}, on_output)
    if not data.seen:
        data.seen.append(seen.value())
    elif not _same(data.seen[0], seen.value()):
        raise ValueError(
            f"{data.name} must give the same instances in the same order every time, got others: "
            "turn shuffling and random augmentation off, or pass a list of batches"
        )
    return collect.scores()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


def _check(name: str, batches: Iterable[Any]) -> None:
    if iter(batches) is batches:
        raise ValueError(
            f"{name} must be something to iterate over many times, such as a list or a DataLoader, "
            f"got {type(batches).__name__}"
        )


def remedies(
    model: nn.Module,
    first: Iterable[Any],
    second: Iterable[Any],
    *,
    batch_sizes: Sequence[int] = (64, 16, 4),
    layers: Sequence[str] | None = None,
    fine_tuning: FineTuning | None = None,
    metric: Metric | None = None,
    forward: Forward | None = None,
    budget: float | None = None,
    on_trial: Callable[[str, float], None] = lambda name, share: None,
) -> Remedies:
    r"""Try what may win back the accuracy that a model loses on a second data set.

    The model is measured in evaluation mode on both data sets: as it is; with its running
    statistics re-estimated (:func:`rbnorm.recalibrate`) on the first, and on the unlabelled second
    data set, in all layers and only in those named below; with the statistics of the test batch at
    several batch sizes; with a mixture :math:`(1-\alpha)` running
    :math:`+\,\alpha` test batch, whose weight is the one of 0.25, 0.5 and 0.75 with the largest
    mutual information of instance and prediction on the second data set, without labels; with TENT
    (Wang et al., ICLR 2021) if the package torch-ttt is installed; and, given ``fine_tuning``,
    after training for some steps as it is and converted to RBN.

    Differences are paired instance by instance, intervals are 95 % percentile bootstrap intervals
    over instances (2,000 resamples, always the same). They tell how sure the difference is on
    *these* data, not how it would come out with another training run. The model is left as found.

    Args:
        model: A model with BatchNorm or RBN layers.
        first: Batches like those of training: tensors, or sequences of a tensor and a target, in
            the same order at every pass; shuffled beforehand, since neighbours form test batches.
            The target is (N,) classes, or (N, ...) for each position of a segmentation, where
            classes that the model does not have (255, -1) are left out.
        second: Batches of the data where the model is to be used.
        batch_sizes: Of the test batches, the largest first. Sizes beyond the second data set's are
            left out.
        layers: The layers of the remedies in few layers; None for those that moved at least half
            as far as the one that moved the furthest, the layers before them repaired.
        fine_tuning: Labelled training batches and how long to train.
        metric: Called with the model's output and the target of a batch; one number per instance,
            (N,), higher is better. None for the accuracy; of a segmentation that of its positions.
        forward: Called with the model and a batch, for models and batches of another form.
            Batches are then taken as they come.
        budget: Seconds after which no further remedy is begun; they are named in ``skipped``.
        on_trial: Called with a remedy's name and the share of the work that is done.

    Returns:
        A :class:`rbnorm.Remedies`: the unchanged model first, then the best remedy. Without labels
        or a metric accuracies and differences are NaN; agreement with the unchanged model and
        confidence are there.

    Raises:
        ValueError: No normaliser, no batch, batches that cannot be gone through again in the same
            order, an unknown layer, or a metric of the wrong form. The model is as it was.
        RuntimeError: The model raised. The model is as it was.
    """
    _check("first", first)
    _check("second", second)
    if fine_tuning is not None:
        _check("fine_tuning.batches", fine_tuning.batches)
    known = normalisers(model)
    unknown = [name for name in layers or () if name not in known]
    if unknown:
        raise ValueError(f"layers must be normalisers of the model, got {unknown[0]!r}")
    with unchanged(model):
        model.eval()
        session = _Session(model, first, second, metric, forward or call)
        return session.result(
            batch_sizes if forward is None else (), layers, fine_tuning, budget, on_trial
        )


class _Session:
    """One call: the unchanged model's scores, which everything is compared with."""

    def __init__(
        self, model: nn.Module, first: Any, second: Any, metric: Metric | None, forward: Forward
    ) -> None:
        self.model, self.metric, self.forward = model, metric, forward
        self.data = (_Data("first", first, []), _Data("second", second, []))
        self.begun = time.perf_counter()
        self.trial = as_it_is(model, forward)
        self.base = self._both(self.trial, model, forward)
        self.seconds = (time.perf_counter() - self.begun) / 2  # of a pass

    def _both(self, trial: Trial, model: nn.Module, forward: Forward) -> tuple[Scores, Scores]:
        first, second = (
            _measured(model, forward, data, trial.batch_size, self.metric) for data in self.data
        )
        return first, second

    def result(
        self,
        batch_sizes: Sequence[int],
        layers: Sequence[str] | None,
        fine_tuning: FineTuning | None,
        budget: float | None,
        on_trial: Callable[[str, float], None],
    ) -> Remedies:
        named = self._named(layers)
        trials = self._trials(batch_sizes, named, fine_tuning)
        total, done = sum(trial.cost for trial in trials), 0.0
        rows, skipped = [self._row(self.trial, self.base, 2 * self.seconds, None)], []
        for trial in trials:
            on_trial(trial.name, done / total)
            spent = time.perf_counter() - self.begun
            if budget is not None and spent + trial.cost * self.seconds > budget:
                skipped.append(trial.name)
            else:
                rows.append(self._tried(trial))
            done += trial.cost
        sizes = len(self.data[0].seen[0]), len(self.data[1].seen[0])
        return Remedies(ranked(rows), sizes, named, tuple(skipped), tuple(self._notes()))

    def _named(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        if layers is not None:
            return tuple(layers)
        first, second = (data.batches for data in self.data)
        return named_layers(own_shifts(self.model, first, second, forward=self.forward))

    def _trials(
        self, batch_sizes: Sequence[int], named: tuple[str, ...], fine_tuning: FineTuning | None
    ) -> list[Trial]:
        first, second = (data.batches for data in self.data)
        most = len(self.data[1].seen[0])
        sizes = [size for size in batch_sizes if size <= most]
        trials = statistics_trials(self.model, self.forward, first, second, sizes, named)
        if sizes and has_tent() and self.base[1].confidence.numel():
            trials.append(tent(self.model, sizes[0]))
        if fine_tuning is not None:
            cost = fine_tuning.steps / max(1, sum(1 for _ in first))
            for convert in (False, True):
                trials.append(
                    fine_tuned(self.model, self.forward, fine_tuning, convert=convert, cost=cost)
                )
        return trials

    def _tried(self, trial: Trial) -> Remedy:
        begun, weight = time.perf_counter(), None
        if trial.weights:
            weight = max(trial.weights, key=lambda weight: self._information(trial, weight))
        with trial.enter(1.0 if weight is None else weight) as (model, forward):
            scores = self._both(trial, model, forward)
        return self._row(trial, scores, time.perf_counter() - begun, weight)

    def _information(self, trial: Trial, weight: float) -> float:
        with trial.enter(weight) as (model, forward):
            data = self.data[1]
            return _measured(model, forward, data, trial.batch_size, self.metric).information

    def _row(
        self, trial: Trial, scores: tuple[Scores, Scores], seconds: float, weight: float | None
    ) -> Remedy:
        differences = [
            interval(ours.score - base.score) for ours, base in zip(scores, self.base, strict=True)
        ]
        pairs = list(zip(scores, self.base, strict=True))
        return Remedy(
            name=trial.name,
            kind=trial.kind,
            first=interval(scores[0].score),
            second=interval(scores[1].score),
            difference=differences[1],
            difference_first=differences[0],
            loss=(_mean(scores[0].loss), _mean(scores[1].loss)),
            agreement=(agreement(*pairs[0]), agreement(*pairs[1])),
            confidence=(_mean(scores[0].confidence), _mean(scores[1].confidence)),
            needs_labels=trial.needs_labels,
            needs_data=trial.needs_data,
            needs_batches=trial.needs_batches,
            passes=trial.passes,
            seconds=seconds,
            batch_size=trial.batch_size,
            weight=weight,
            layers=trial.layers,
        )

    def _notes(self) -> list[str]:
        notes = []
        for data, scores in zip(self.data, self.base, strict=True):
            classes = scores.target
            if classes.ndim == 1 and len(classes) > 1 and len(classes.unique()) > 2:
                same = (classes[1:] == classes[:-1]).double().mean()
                if same > _SORTED:
                    notes.append(
                        f"the {data.name} data comes sorted by class: statistics of a test batch "
                        "say little about shuffled or single images"
                    )
        return notes


def _mean(values: Tensor) -> float:
    return float(values[~values.isnan()].mean()) if len(values) else torch.nan
