"""One run in this process: its order, its steps, and continuing it at any of them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from support import CONFIG
from tolerances import assert_close
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

import rbnorm
from rbnorm.lab.data import ImageData, Tensors, load_data
from rbnorm.lab.errors import UsageError
from rbnorm.lab.training import checkpoint, loop
from rbnorm.lab.training.loop import Training, synchronise
from rbnorm.lab.training.order import Augmented, Draw, Order, training_batches
from rbnorm.lab.training.recipe import Recipe

RUN = replace(CONFIG, batch_size=8, norm="rbn", lr=0.1, weight_decay=1e-2, seed=3)
STEPS = 5  # of two to an epoch


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def data():
    """Twenty-one noisy images, flipped at random: two steps of eight, and five left out."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(31, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (31,), generator=generator)
    flip = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(20)])
    return ImageData(
        Tensors(images[:21], labels[:21], flip),
        Tensors(images[:21], labels[:21], v2.Identity()),
        Tensors(images[21:], labels[21:], v2.Identity()),
        classes=10,
        channels=1,
        mean=(0.0,),
        std=(1.0,),
    )


@pytest.fixture
def _dropout(monkeypatch):
    """Every model also draws random numbers of its own."""
    build = loop.build_model
    monkeypatch.setattr(
        loop, "build_model", lambda *a, **k: nn.Sequential(nn.Dropout2d(0.5), build(*a, **k))
    )


def start(recipe, data):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=recipe.accumulate)
    return Training(recipe, data, accelerator)


def go_on(training, steps):
    """Take steps, evaluating where an epoch ends."""
    steps = range(training.step, steps)
    loader = training_batches(training.recipe, training.data, 0, steps, training.device)
    batches = iter(loader)
    for _ in steps:
        training.advance(batches)
        if training.step % training.epoch_steps == 0:
            training.end_epoch(lambda: None)
    return training


def same(a, b):
    """Equal in every bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_the_learning_rate_is_divided_by_ten_every_thirty_epochs():
    recipe = Recipe(replace(RUN, lr=0.1))
    rates = [recipe.lr_at(epoch) for epoch in (0, 29, 30, 59, 60, 90)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.0001], rel=1e-15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "batch size 8 must be a multiple of processes times passes, 1 x 3"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"decay_every": 0}, "decay every must be at least 1, not 0"),
        ({"ema": 1.0}, "ema must be between 0 and 1, not 1.0"),
        ({"ema": math.nan}, "ema must be between 0 and 1, not nan"),
        ({"run": replace(RUN, seed=-1)}, "seed must be at least 0, not -1"),
    ],
)
def test_a_recipe_out_of_range_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**{"run": RUN, **changes})


def test_processes_and_passes_share_the_images_of_a_step():
    def step(processes, accumulate):
        recipe = Recipe(replace(RUN, processes=processes), accumulate)
        draws = [list(Order(recipe, 21, rank, range(4))) for rank in range(processes)]
        assert {len(draw.indices) for own in draws for draw in own} == {recipe.share}
        return [
            sorted(
                index
                for own in draws
                for draw in own[s * accumulate : (s + 1) * accumulate]
                for index in draw.indices
            )
            for s in range(4)
        ]

    whole = step(1, 1)
    assert step(2, 1) == step(1, 4) == step(2, 2) == whole
    assert len({*whole[0], *whole[1]}) == 16  # an epoch has no image twice
    assert whole[:2] != whole[2:]  # and every epoch an order of its own


def test_every_draw_has_another_seed_in_every_process_and_another_run():
    recipes = [Recipe(replace(RUN, processes=2, seed=seed), 2) for seed in (0, 1)]
    draws = [
        draw
        for recipe in recipes
        for rank in range(2)
        for draw in Order(recipe, 21, rank, range(4))
    ]
    assert len({draw.seed for draw in draws}) == len(draws) == 2 * 2 * 8


def test_an_order_that_begins_later_is_the_end_of_the_whole():
    recipe = Recipe(RUN, accumulate=2)
    whole = list(Order(recipe, 21, 0, range(6)))
    assert list(Order(recipe, 21, 0, range(3, 6))) == whole[6:]


@pytest.mark.parametrize("batched", [True, False])
def test_augmentation_depends_on_the_draw_alone(data, batched):
    augmented = Augmented(data.train if batched else Single(data.train))
    first = augmented[Draw([1, 2], 7)]
    before = torch.get_rng_state()
    augmented[Draw([3], 8)]
    assert same(torch.get_rng_state(), before)
    assert same(augmented[Draw([1, 2], 7)], first)
    assert not same(augmented[Draw([1, 2], 9)], first)


class Single:
    """Images that come one by one, as those of a folder do."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __getitem__(self, index):
        image, label = self.tensors[index]
        return self.tensors.transform(image), label


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_momentum_sgd_with_decay_on_every_parameter(data, accumulate):
    run = replace(RUN, norm="gn")  # passes of other sizes then have the same gradient
    recipe = Recipe(run, accumulate, decay_every=1, ema=0.75)
    training = start(recipe, data)
    model = copy.deepcopy(training.module).double()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    average = {}
    batches = list(training_batches(recipe, data, 0, range(4), training.device))
    for step in range(4):
        model.zero_grad()
        for images, labels in batches[step * accumulate : (step + 1) * accumulate]:
            (cross_entropy(model(images.double()), labels) / accumulate).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                velocity[name] = 0.9 * velocity[name] + p.grad + run.weight_decay * p
                p.sub_((run.lr if step < 2 else run.lr / 10) * velocity[name])
                average[name] = p.clone() if step == 0 else 0.75 * average[name] + 0.25 * p
    go_on(training, 4)
    for (name, expected), actual in zip(
        model.named_parameters(), training.module.parameters(), strict=True
    ):
        assert_close(actual, expected.detach(), torch.float32)
        assert_close(
            training.average.module.get_parameter(name), average[name].detach(), torch.float32
        )


def test_the_history_has_the_metrics_of_every_epoch(data):
    training = go_on(start(Recipe(RUN, ema=0.5), data), 4)
    assert [metrics["epoch"] for metrics in training.history] == [1, 2]
    images, labels = data.test[:]
    for name, module in (("test", training.module), ("ema", training.average)):
        scores = module.eval()(images).double()
        metrics = training.history[-1]
        expected = cross_entropy(scores, labels).item()
        assert metrics[f"{name}_loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics[f"{name}_accuracy"] == (scores.argmax(1) == labels).double().mean().item()


@pytest.mark.usefixtures("_dropout")
@pytest.mark.parametrize("recipe", [Recipe(RUN), Recipe(RUN, accumulate=2, ema=0.9)])
def test_a_run_continued_at_any_step_ends_in_the_same_bits(data, tmp_path, recipe):
    def end(training):
        return vars(go_on(training, STEPS).snapshot())

    whole = start(recipe, data)
    expected = copy.deepcopy(end(whole))
    for step in range(1, STEPS):
        folder = tmp_path / str(step)
        folder.mkdir()
        checkpoint.save(folder, go_on(start(recipe, data), step).snapshot())
        training = start(recipe, data)
        torch.rand(step)  # whatever the new process did before
        training.restore(checkpoint.read(checkpoint.newest(folder), training.identity()))
        actual = end(training)
        totals = actual.pop("totals"), actual.pop("history")
        assert same(actual, {key: expected[key] for key in actual})
        assert totals[0] == pytest.approx(expected["totals"], rel=1e-12)
        for a, b in zip(totals[1], expected["history"], strict=True):
            assert a == pytest.approx(b, rel=1e-12)


def test_a_loss_that_is_not_finite_leaves_no_checkpoint(data):
    training = start(Recipe(replace(RUN, lr=1e30)), data)
    for images in training_batches(training.recipe, data, 0, range(3), training.device):
        training.advance(iter([images]))
    with pytest.raises(UsageError, match="no longer finite at step 3"):
        training.snapshot()


def test_less_than_a_step_of_images_is_refused(data):
    with pytest.raises(UsageError, match="batch size 22 is more than the 21 training images"):
        start(Recipe(replace(RUN, batch_size=22)), data)


def test_rbn_is_synchronised_by_its_own_layers():
    model = synchronise(rbnorm.convert_batchnorm(nn.BatchNorm2d(2)), "rbn", torch.device("cpu"))
    assert isinstance(model, rbnorm.SyncRepresentativeBatchNorm)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GroupNorm(1, 2), "norm 'x' has no batch statistics to synchronise"),
        (nn.BatchNorm2d(2), "torch synchronises norm 'x' on accelerators only, not on the CPU"),
    ],
)
def test_what_cannot_be_synchronised_is_refused(layer, message):
    with pytest.raises(UsageError, match=message):
        synchronise(nn.Sequential(layer), "x", torch.device("cpu"))


def test_batchnorm_is_synchronised_by_torch_on_an_accelerator():
    model = synchronise(nn.Sequential(nn.BatchNorm2d(2)), "bn", torch.device("cuda"))
    assert isinstance(model[0], nn.SyncBatchNorm)


def test_digits_are_learnt():
    data = load_data("digits", limit=640)
    recipe = Recipe(replace(RUN, batch_size=32, weight_decay=1e-4))
    training = go_on(start(recipe, data), 40)
    assert training.history[-1]["test_accuracy"] > 0.8
