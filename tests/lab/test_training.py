"""One run in this process: its order, its steps, and continuing it at any of them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from support import CONFIG
from tolerances import assert_close
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import rbnorm
from rbnorm_lab.data import ImageData, Tensors
from rbnorm_lab.errors import UsageError
from rbnorm_lab.evaluate import IGNORED, segmentation
from rbnorm_lab.models import build_model
from rbnorm_lab.train import train_run
from rbnorm_lab.training import checkpoint
from rbnorm_lab.training.command import parts
from rbnorm_lab.training.loop import Training
from rbnorm_lab.training.order import Augmented, Draw, Order, held_out, loaded, training_batches
from rbnorm_lab.training.recipe import groups_of

RUN = replace(
    CONFIG, batch_size=8, norm="rbn", lr=0.1, weight_decay=1e-2, seed=3, epochs=3, recipe="steps"
)
STEPS = 5  # of two to an epoch
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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


def build(config, data, dropout=0.0):
    """The config's model, which may also draw random numbers of its own."""
    model = build_model(config.model, config.norm, classes=10, channels=1, seed=config.seed)
    return nn.Sequential(nn.Dropout2d(dropout), model) if dropout else model


def start(config, data, dropout=0.0, groups=groups_of):
    accelerator = Accelerator(cpu=True)
    return Training(build(config, data, dropout), config, data, accelerator, groups)


def go_on(training, steps):
    """Take steps, evaluating where an epoch ends."""
    steps = range(training.step, steps)
    batches = training_batches(training.config, training.data, 0, steps, training.device)
    for _ in steps:
        training.advance(batches)
        if training.step % training.epoch_steps == 0:
            training.end_epoch()
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


def rates(config, data):
    """The learning rate of every step."""
    training, seen = start(config, data), []
    training.fit(lambda: seen.append(training.lr))
    return seen


def test_the_learning_rate_is_divided_by_ten_every_thirty_epochs(data):
    seen = rates(replace(RUN, batch_size=21, epochs=91), data)
    chosen = [seen[epoch] for epoch in (0, 29, 30, 59, 60, 90)]
    assert chosen == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.0001], rel=1e-15)


def test_the_learning_rate_of_one_cycle_rises_and_falls(data):
    seen = rates(replace(RUN, recipe="one-cycle", batch_size=21, epochs=11), data)
    # a cosine from lr / 25 to lr in 30 % of the steps, and another down to lr / 25e4
    expected = [
        start_of + (end - start_of) * (1 - math.cos(math.pi * share)) / 2
        for step in range(11)
        for start_of, end, share in [
            (0.004, 0.1, step / 2.3) if step <= 2 else (0.1, 4e-7, (step - 2.3) / 7.7)
        ]
    ]
    assert seen == pytest.approx(expected, rel=1e-9)


def test_groups_of_parameters_have_rates_of_their_own(data):
    def groups(module, config):
        calibration, others = [], []
        for name, parameter in module.named_parameters():
            own = calibration if "center" in name or "scale" in name else others
            own.append(parameter)
        return [{"params": others}, {"params": calibration, "lr": 0.0, "weight_decay": 0.0}]

    training = start(replace(RUN, epochs=1), data, groups=groups)
    before = copy.deepcopy(training.module)
    training.fit()
    moved = {
        name: not torch.equal(parameter, before.get_parameter(name))
        for name, parameter in training.module.named_parameters()
    }
    assert moved == {name: not ("center" in name or "scale" in name) for name in moved}


@pytest.mark.parametrize(
    ("processes", "accumulate", "size"), [(1, 1, None), (2, 1, None), (1, 4, 2), (2, 2, 2)]
)
def test_passes_cut_a_process_s_share(processes, accumulate, size):
    assert parts(8, processes, accumulate) == size


def test_passes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(UsageError, match=r"batch size 8 must be .* 1 x 3"):
        parts(8, 1, 3)


def test_processes_share_the_images_of_a_step():
    def step(processes):
        config = replace(RUN, processes=processes)
        draws = [list(Order(config, 21, rank, range(4))) for rank in range(processes)]
        assert {len(draw.indices) for own in draws for draw in own} == {config.share}
        return [sorted(index for own in draws for index in own[s].indices) for s in range(4)]

    whole = step(1)
    assert step(2) == step(4) == whole
    assert len({*whole[0], *whole[1]}) == 16  # an epoch has no image twice
    assert whole[:2] != whole[2:]  # and every epoch an order of its own


@pytest.mark.parametrize("images", [21, 24])  # with images left out, and without
def test_the_order_is_that_of_a_loader_that_shuffles(images):
    generator = torch.Generator().manual_seed(RUN.seed)
    loader = DataLoader(range(images), 8, shuffle=True, drop_last=True, generator=generator)
    expected = [batch.tolist() for _ in range(3) for batch in loader]
    order = Order(RUN, images, 0, range(len(expected)))
    assert [draw.indices for draw in order] == expected


def test_every_draw_has_another_seed_in_every_process_and_another_run():
    configs = [replace(RUN, processes=2, seed=seed) for seed in (0, 1)]
    draws = [
        draw
        for config in configs
        for rank in range(2)
        for draw in Order(config, 21, rank, range(4))
    ]
    assert len({draw.seed for draw in draws}) == len(draws) == 2 * 2 * 4


def test_an_order_that_begins_later_is_the_end_of_the_whole():
    whole = list(Order(RUN, 21, 0, range(6)))
    assert list(Order(RUN, 21, 0, range(3, 6))) == whole[3:]


def test_only_images_of_the_processor_are_pinned(data):
    assert held_out(CONFIG, data, 0, CUDA).pin_memory
    assert not held_out(CONFIG, replace(data, device=CUDA), 0, CUDA).pin_memory
    assert not held_out(CONFIG, data, 0, CPU).pin_memory


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
    # without batch statistics passes of other sizes have the same gradient
    size = parts(8, 1, accumulate)
    run = replace(RUN, norm="gn", norm_batch=size, decay_every=1)
    training = start(run, data)
    model = copy.deepcopy(training.module).double()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    batches = list(training_batches(run, data, 0, range(4), training.device))
    for step in range(4):
        model.zero_grad()
        images, labels = map(torch.cat, zip(*batches[step], strict=True))
        cross_entropy(model(images.double()), labels).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                velocity[name] = 0.9 * velocity[name] + p.grad + run.weight_decay * p
                p.sub_((run.lr if step < 2 else run.lr / 10) * velocity[name])
    go_on(training, 4)
    for expected, actual in zip(model.parameters(), training.module.parameters(), strict=True):
        assert_close(actual, expected.detach(), torch.float32)


def test_the_history_has_the_metrics_of_every_epoch(data):
    training = go_on(start(RUN, data), 4)
    assert [metrics["epoch"] for metrics in training.history] == [1, 2]
    images, labels = data.test.tensors
    scores = training.module.eval()(images).double()
    metrics = training.history[-1]
    assert metrics["test_loss"] == pytest.approx(cross_entropy(scores, labels).item(), rel=1e-5)
    assert metrics["test_accuracy"] == (scores.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize(
    "config",
    [
        RUN,
        replace(RUN, norm_batch=4),
        replace(RUN, recipe="one-cycle", norm_batch=2, sorted_batches=True),
    ],
    ids=["plain", "parts", "one-cycle-sorted"],
)
def test_a_run_continued_after_an_epoch_ends_in_the_same_bits(data, tmp_path, config):
    def end(training):
        go_on(training, STEPS)
        parts = (training.module, training.optimizer)
        return copy.deepcopy([part.state_dict() for part in parts]), training

    expected, whole = end(start(config, data, dropout=0.5))
    for step in (2, 4):
        checkpoint.save(go_on(start(config, data, dropout=0.5), step), tmp_path / str(step))
        training = start(config, data, dropout=0.5)
        torch.rand(step)  # whatever the new process did before
        checkpoint.load(training, checkpoint.newest(tmp_path / str(step)))
        actual, training = end(training)
        assert same(actual, expected)
        assert (training.step, training.lr) == (whole.step, whole.lr)
        for a, b in zip(training.history, whole.history, strict=True):
            assert a == pytest.approx(b, rel=1e-12)


def test_a_loss_that_is_not_finite_leaves_no_checkpoint(data, tmp_path):
    with pytest.raises(UsageError, match="no longer finite in epoch 1"):
        train_run(replace(RUN, lr=1e30), data, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_less_than_a_step_of_images_is_refused(data):
    with pytest.raises(UsageError, match="batch size 22 is more than the 21 training images"):
        start(replace(RUN, batch_size=22), data)


class Killed:
    """What torch raises where the system has killed a worker, which here would end the tests."""

    def __iter__(self):
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly")


def test_a_loader_that_is_killed_is_said():
    with pytest.raises(UsageError, match="a process that loads images has ended"):
        next(iter(loaded(Killed())))


def test_a_network_is_trained_for_segmentation():
    """The left half of an image is brighter; two pixels of every image do not count."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(40, 8, 8, dtype=torch.long)
    labels[:, :, :4] = 1
    images = labels[:, None] * 2.0 + 0.1 * torch.randn(40, 1, 8, 8, generator=generator)
    labels[:, 0, :2] = IGNORED
    parts = [TensorDataset(images[a:b], labels[a:b]) for a, b in ((0, 32), (0, 32), (32, 40))]
    data = ImageData(*parts, 2, 1, (0.0,), (1.0,), segmentation(2))
    config = replace(RUN, norm="rbn", epochs=8, weight_decay=0.0)
    norm = rbnorm.RepresentativeBatchNorm2d(4)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 2, 1))
    record = train_run(config, data, build=lambda config, data: network)
    scores = network.eval()(images[32:])
    chosen, counted = scores.argmax(1), labels[32:] != IGNORED
    ratios = []
    for label in range(2):
        both = ((chosen == label) & (labels[32:] == label) & counted).sum()
        either = (((chosen == label) | (labels[32:] == label)) & counted).sum()
        ratios.append((both / either).item())
    assert record.accuracy == pytest.approx(sum(ratios) / 2, rel=1e-6)
    loss = cross_entropy(scores, labels[32:], ignore_index=IGNORED).item()
    assert record.epochs[-1].test_loss == pytest.approx(loss, rel=1e-5)
    assert record.accuracy > 0.95


def test_a_run_with_a_folder_continues_after_its_last_epoch(data, tmp_path):
    config = replace(RUN, epochs=4, recipe="one-cycle", trace=False)
    whole = train_run(config, data)

    class Stop(BaseException):
        pass

    steps = []

    def stop():
        steps.append(1)
        if len(steps) == 5:
            raise Stop

    with pytest.raises(Stop):
        train_run(config, data, stop, folder=tmp_path)
    steps.clear()
    rest = train_run(config, data, lambda: steps.append(1), folder=tmp_path)
    assert len(steps) == 4  # of eight
    plain = [replace(epoch, seconds=0.0) for epoch in whole.epochs]
    assert [replace(epoch, seconds=0.0) for epoch in rest.epochs] == plain
    assert rest.calibration == whole.calibration
