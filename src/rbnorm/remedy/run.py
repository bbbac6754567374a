"""``remedies``: a model, two data sets, and what each remedy wins back on the second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rbnorm.diagnosis.images import Images, ImageShift, own_moments
from rbnorm.diagnosis.passes import Forward, call, check_repeatable, normalisers, run, unchanged
from rbnorm.diagnosis.result import mean
from rbnorm.diagnosis.scores import Collector, Metric, Scores, agreement, interval
from rbnorm.diagnosis.tally import Tally
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.remedy.moments import MatchMoments
from rbnorm.remedy.result import Remedies, Remedy
from rbnorm.remedy.statistics import Rebatched
from rbnorm.remedy.trials import (
    FineTuning,
    Trial,
    fine_tuned,
    of_the_batch,
    own_moments_set,
    re_estimated,
    tent,
)

_SORTED = 0.5  # share of neighbours of one class that shuffled data with two classes has


class _NotRepeatedError(ValueError):
    """A data set gave other instances than before, so that nothing could be paired."""


class _Data:
    """A data set, and what its instances were at the first pass."""

    def __init__(self, name: str, batches: Iterable[Any]) -> None:
        check_repeatable(name, batches)
        self.name, self.batches = name, batches
        self.images: Images | None = None
        self.channels = Tally()  # mean and standard deviation of each, (2, C)

    def pass_over(
        self, model: nn.Module, forward: Forward, size: int | None, on_output: Any
    ) -> None:
        """Run a model; refuse instances other than those of the first pass."""
        seen = Images()

        def on_input(x: Tensor) -> None:
            seen(x)
            if seen.dims > 1 and self.images is None:
                own = torch.stack(own_moments(x.detach(), seen.dims, by_channel=True), 1)
                self.channels.add(own.flatten(2).cpu().double())

        batches = self.batches if size is None else Rebatched(self.batches, size)
        run(model, batches, forward, {}, on_output, on_input)
        before, now = (self.images or seen).table, seen.table
        if before.shape != now.shape or not torch.allclose(before, now, equal_nan=True):
            raise _NotRepeatedError(
                f"{self.name} must give the same instances in the same order every time, got "
                "others: turn shuffling and random augmentation off, or pass a list of batches"
            )
        self.images = self.images or seen


def remedies(
    model: nn.Module,
    first: Iterable[Any],
    second: Iterable[Any],
    *,
    batch_sizes: Sequence[int] = (64, 16, 4),
    fine_tuning: FineTuning | None = None,
    metric: Metric | None = None,
    forward: Forward | None = None,
    budget: float | None = None,
    on_trial: Callable[[str, float], None] = lambda name, share: None,
) -> Remedies:
    r"""Try what may win back the accuracy that a model loses on a second data set.

    The model is measured in evaluation mode on both data sets: as it is; with each image's own
    mean, contrast, or both set to those of the first data (:class:`rbnorm.MatchMoments`), as a
    whole and channel by channel, where the second data's images differ from them in that; with its
    running statistics re-estimated (:func:`rbnorm.recalibrate`) on the unlabelled second data set;
    with the statistics of the test batch at several batch sizes; with a mixture
    :math:`(1-\alpha)` running :math:`+\,\alpha` test batch, whose weight is the one of 0.25, 0.5
    and 0.75 with the largest mutual information of instance and prediction on the second data set,
    without labels; with TENT (Wang et al., ICLR 2021), which adapts affine parameters and
    calibration; and, given ``fine_tuning``, after training for some steps as it is and, unless it
    is RBN already, converted to it.

    Differences are paired instance by instance, intervals are 95 % percentile bootstrap intervals
    over instances (2,000 resamples, always the same). They tell how sure the difference is on
    *these* data, not how it would come out with another training run. The model is left as found.

    Args:
        model: A model with BatchNorm or RBN layers.
        first: Batches like those of training: tensors, sequences of a tensor and a target, or
            mappings with the target under "labels", "label" or "target"; in the same order at
            every pass; shuffled beforehand, since neighbours form test batches.
            The target is (N,) classes, or (N, ...) for each position of a segmentation, where
            classes that the model does not have (255, -1) are left out.
        second: Batches of the data where the model is to be used.
        batch_sizes: Of the test batches, the largest first. Sizes beyond the second data set's are
            left out.
        fine_tuning: Labelled training batches and how long to train.
        metric: Called with the model's output and the target of a batch; one number per instance,
            (N,), higher is better. None for the accuracy; of a segmentation that of its positions.
        forward: Called with the model and a batch, for models and batches of another form. Batches
            of another size are made of the rows of their tensors.
        budget: Seconds after which no further remedy is begun.
        on_trial: Called with a remedy's name and the share of the work that is done.

    Returns:
        A :class:`rbnorm.Remedies`: the unchanged model first, then the best remedy. What was not
        tried or failed stands in ``skipped`` with the reason. Without labels or a metric accuracies
        and differences are NaN; agreement with the unchanged model and confidence are there.

    Raises:
        ValueError: No normaliser, no batch, batches that cannot be gone through again in the same
            order, or a metric of the wrong form. The model is as it was.
        RuntimeError: The unchanged model raised. The model is as it was.
    """
    normalisers(model)
    with unchanged(model):
        model.eval()
        session = _Session(model, first, second, metric, forward or call)
        return session.result(batch_sizes, fine_tuning, budget, on_trial)


class _Session:
    """One call: the unchanged model's scores, which everything is compared with."""

    def __init__(
        self, model: nn.Module, first: Any, second: Any, metric: Metric | None, forward: Forward
    ) -> None:
        self.model, self.metric, self.forward = model, metric, forward
        self.data = (_Data("first", first), _Data("second", second))
        self.begun = time.perf_counter()
        self.trial = Trial("as it is", "unchanged", lambda _: nullcontext())
        self.base = self._both(self.trial, 1.0)
        self.images = [data.images for data in self.data if data.images is not None]
        self.seconds = (time.perf_counter() - self.begun) / 2  # of a pass
        self.skipped: dict[str, str] = {}

    def result(
        self,
        batch_sizes: Sequence[int],
        fine_tuning: FineTuning | None,
        budget: float | None,
        on_trial: Callable[[str, float], None],
    ) -> Remedies:
        base, rows = self._row(self.trial, self.base, 2 * self.seconds, None), []
        trials = self._trials(batch_sizes, fine_tuning)
        total, done = sum(trial.cost for trial in trials), 0.0
        for trial in trials:
            on_trial(trial.name, done / total)
            spent, cost = time.perf_counter() - self.begun, trial.cost * self.seconds
            if budget is not None and spent + cost > budget:
                self.skipped[trial.name] = f"takes about {cost:.0f} s, more than is left"
            else:
                try:
                    rows.append(self._tried(trial))
                except _NotRepeatedError:
                    raise
                except Exception as error:  # the others are still valid
                    self.skipped[trial.name] = str(error) or type(error).__name__
            done += trial.cost
        sizes = len(self.images[0].table), len(self.images[1].table)
        rows.sort(key=lambda row: (math.isnan(row.difference.value), -row.difference.value))
        return Remedies((base, *rows), sizes, self.skipped, tuple(self._notes()))

    def _trials(self, batch_sizes: Sequence[int], fine_tuning: FineTuning | None) -> list[Trial]:
        model, forward = self.model, self.forward
        sizes = [size for size in batch_sizes if size <= len(self.images[1].table)]
        trials = [
            *self._own_moments(),
            re_estimated(model, forward, self.data[1].batches),
            *(of_the_batch(model, size) for size in sizes),
            *(of_the_batch(model, size, mixed=True) for size in sizes),
        ]
        if len(self.base[1].confidence):
            trials += [tent(model, forward, size) for size in sizes[:1]]
        else:
            self.skipped["TENT"] = "needs scores of two classes or more"
        if fine_tuning is not None:
            cost = fine_tuning.steps / max(1, sum(1 for _ in self.data[0].batches))
            rbn = all(isinstance(m, _RepresentativeBatchNorm) for m in normalisers(model).values())
            for convert in (False,) if rbn else (False, True):
                trials.append(fine_tuned(model, forward, fine_tuning, convert=convert, cost=cost))
        return trials

    def _own_moments(self) -> list[Trial]:
        """Set what differs between the images of the two data sets."""
        first, second = self.images
        shift = ImageShift.of(first, second)
        if shift is not None and shift.moved is not None:
            whole, channels = first.table.nanmean(0), self.data[0].channels.result()[1]
            return [
                own_moments_set(self.model, MatchMoments(M, S, shift.moved, dims=first.dims))
                for M, S in (whole, channels)
                if S.numel() != 1 or S.ndim == 0  # a single channel is the whole image
                if (S > 0).all()
            ]
        why = "there are no images" if shift is None else "both match the first data's already"
        self.skipped["each image's own mean and contrast set"] = why
        return []

    def _tried(self, trial: Trial) -> Remedy:
        begun, weight = time.perf_counter(), None
        if trial.weights:
            seen = {w: self._scores(trial, w, self.data[1:])[0] for w in trial.weights}
            weight = max(seen, key=lambda w: seen[w].information)
        scores = self._both(trial, 1.0 if weight is None else weight)
        return self._row(trial, scores, time.perf_counter() - begun, weight)

    def _both(self, trial: Trial, weight: float) -> list[Scores]:
        """On the first and the second data set; an online remedy begins anew with each."""
        groups = [self.data[:1], self.data[1:]] if trial.online else [self.data]
        return [scores for data in groups for scores in self._scores(trial, weight, data)]

    def _scores(self, trial: Trial, weight: float, data: Iterable[_Data]) -> list[Scores]:
        found = []
        with trial.enter(weight) as other:
            for each in data:
                collect = Collector(self.metric)
                size = trial.needs.get("batch_size")
                each.pass_over(*(other or (self.model, self.forward)), size, collect)
                found.append(collect.scores())
        return found

    def _row(
        self, trial: Trial, scores: list[Scores], seconds: float, weight: float | None
    ) -> Remedy:
        (first, second), (before, base) = scores, self.base
        return Remedy(
            name=trial.name,
            kind=trial.kind,
            first=interval(first.score),
            second=interval(second.score),
            difference=interval(second.score - base.score),
            agreement=(agreement(first, before), agreement(second, base)),
            confidence=(mean(first.confidence), mean(second.confidence)),
            seconds=seconds,
            weight=weight,
            **trial.needs,
        )

    def _notes(self) -> list[str]:
        notes = []
        for data, scores in zip(self.data, self.base, strict=True):
            if not len(scores.score):
                missing = (
                    "its batches have no classes for the model's output, as the second item of a "
                    "sequence, or as a mapping's labels, label or target"
                    if len(scores.confidence)
                    else "the model's output has no scores of two classes or more; pass metric="
                )
                notes.append(f"no accuracy on the {data.name} data: {missing}")
            classes = scores.target
            if classes.ndim == 1 and len(classes) > 1 and len(classes.unique()) > 2:
                same = (classes[1:] == classes[:-1]).double().mean()
                if same > _SORTED:
                    notes.append(
                        f"the {data.name} data is sorted by class: statistics of a test batch "
                        "say little about shuffled or single images"
                    )
        return notes
