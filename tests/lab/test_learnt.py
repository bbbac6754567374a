"""What RBN learnt, from records."""

from dataclasses import replace

import torch
from simulated import results_of as found_in
from support import CONFIG, make_record
from torch import nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.layers import calibration_summary
from rbnorm_lab.studies.learnt import learnt, sections, sentence
from rbnorm_lab.studies.study import Arm, Study
from rbnorm_lab.text import Text


def results_of(*seeds, norm="rbn"):
    """A study of one network whose two layers have these w_m, w_v and w_b, for each seed."""
    config = replace(CONFIG, norm=norm)
    records = {}
    for seed, layers in enumerate(seeds):
        model = nn.Sequential(*(RepresentativeBatchNorm2d(4) for _ in layers))
        for layer, (w_m, w_v, w_b) in zip(model, layers, strict=True):
            with torch.no_grad():
                layer.center_weight.copy_(torch.tensor(w_m))
                layer.scale_weight.copy_(torch.tensor(w_v))
                layer.scale_bias.fill_(w_b)
        record = make_record(norm=norm, seed=seed)
        record = replace(record, calibration=calibration_summary(model))
        records[record.config.key] = record
    arm = Arm("net", norm, config, None)
    none = Text("", "")
    study = Study("networks", none, none, (), (arm,), tuple(range(len(seeds))))
    return found_in(study, records)


ONE = (([0.0, 0.02, 1.0, 1.0], [0.0] * 4, 0.0), ([-1.0] * 4, [0.01, 0.01, 0.01, 1.0], 1.0))
OTHER = (([0.0] * 4, [0.0] * 4, 2.0), ([-2.0] * 4, [1.0] * 4, 1.0))


def said_of(results):
    ((group, records),) = learnt(results).items()
    return sentence(group, records)


def test_quantiles_are_means_over_seeds_and_gates_of_their_mean_bias():
    """Medians of w_m are 0.255 and -1.5, and each layer's w_b is 1 on average."""
    said = said_of(results_of(ONE, OTHER)).en
    assert said.startswith("net (2 seeds): the layers' median w_m is −0.62, ")
    assert "nine channels in ten of each lie between −1.50 and +0.50; " in said
    assert "the median gate is 0.73 in the first layer and 0.73 in the last" in said


def test_inert_are_the_weights_near_zero():
    said = said_of(results_of(ONE, OTHER))
    assert "within 0.05 of 0 are 38 % of w_m and 69 % of w_v" in said.en
    assert "w_v 占 69%" in said.zh


def test_records_without_the_share_say_nothing_of_it():
    results = results_of(ONE)
    for layer in results.records[0].calibration.values():
        for values in layer.values():
            values.pop("inert", None)
    assert "within" not in said_of(results).en


def test_without_rbn_there_is_nothing():
    results = results_of(ONE, norm="rbn:preserve=yes")
    assert not learnt(results)
    assert not sections(results)
