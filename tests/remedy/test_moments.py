"""``MatchMoments``: images with the mean and the contrast of others."""

import onnxruntime
import pytest
import torch
from tolerances import assert_close
from torch import nn
from torchvision.transforms import v2

import rbnorm
from rbnorm.export import to_onnx

MEAN, STD = 0.375, 0.75  # exact in float32


def literal(x, match: str, strength: float, *, mean=MEAN, std=STD, axes=(-3, -2, -1)):
    """The definition, in float64."""
    x = x.double()
    m = x.mean(axes, keepdim=True)
    s = (x.square().mean(axes, keepdim=True) - m.square()).clamp_min(0).sqrt()
    factor = (std / s.clamp_min(std / 100)) ** strength if match != "mean" else 1.0
    offset = strength * (mean - m) if match != "contrast" else 0.0
    return (x - m) * factor + m + offset


@pytest.mark.parametrize("match", ["mean", "contrast", "both"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 7, 4), (1, 3, 2, 2), (3, 8, 8), (1, 5, 5), (0, 3, 4, 4)])
def test_the_definition(match: str, strength: float, dtype, shape) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    found = rbnorm.MatchMoments(MEAN, STD, match, strength)(x)
    assert found.dtype == dtype
    assert_close(found, literal(x, match, strength), dtype, scale=8)


@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (3, 4, 4), (2, 3, 1, 1)])
def test_channels_by_themselves(shape) -> None:
    mean, std = (torch.tensor(v).double() for v in ([0.0, 1.0, -1.0], [1.0, 2.0, 0.5]))
    x = torch.randn(shape, dtype=torch.float64) + 2
    found = rbnorm.MatchMoments(mean, std)(x)
    wanted = {"mean": mean.view(3, 1, 1), "std": std.view(3, 1, 1)}
    assert_close(found, literal(x, "both", 1.0, axes=(-2, -1), **wanted), torch.float64)


@pytest.mark.parametrize("dims", [2, 4])
def test_sequences_and_volumes(dims: int) -> None:
    x = torch.randn((3, 2, *(4,) * (dims - 1)), dtype=torch.float64)
    found = rbnorm.MatchMoments(MEAN, STD, dims=dims)(x)
    assert_close(found, literal(x, "both", 1.0, axes=tuple(range(1, x.ndim))), torch.float64)


@pytest.mark.parametrize("match", ["mean", "contrast", "both"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4])
def test_a_constant_image_stays_constant(match: str, value: float) -> None:
    x = torch.full((2, 3, 5, 5), value)
    found = rbnorm.MatchMoments(MEAN, STD, match)(x)
    wanted = torch.full_like(x, value if match == "contrast" else MEAN)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=abs(value) * 1e-5)


def test_contrast_is_raised_a_hundredfold_at_most() -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64) * 1e-5
    found = rbnorm.MatchMoments(0.0, 1.0)(x)
    torch.testing.assert_close(found.std() / x.std(), torch.tensor(100.0).double())


def test_whole_numbers_are_rounded_and_clipped() -> None:
    x = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    found = rbnorm.MatchMoments(200.0, 60.0)(x)
    assert found.dtype == torch.uint8
    wanted = literal(x, "both", 1.0, mean=200.0, std=60.0)
    assert wanted.max() > 255
    assert torch.equal(found, wanted.round().clamp(0, 255).to(torch.uint8))
    match = rbnorm.MatchMoments.of([(x[None], torch.tensor([0]))])
    torch.testing.assert_close(match.mean, x.float().mean())


def test_an_image_depends_on_no_other() -> None:
    x = torch.randn(4, 3, 6, 6)
    match = rbnorm.MatchMoments(MEAN, STD)
    assert torch.equal(match(x)[1:2], match(x[1:2]))
    assert torch.equal(match(x)[1], match(x[1]))


def test_padding_counts_and_belongs_after_it() -> None:
    x, match = torch.randn(3, 8, 8) + 2, rbnorm.MatchMoments(MEAN, STD)
    padded = v2.Compose([match, v2.Pad(2)])(x)
    assert torch.equal(padded[:, 2:-2, 2:-2], match(x))
    other = v2.Compose([v2.Pad(2), match])(x)
    assert_close(other, literal(v2.functional.pad(x, [2]), "both", 1.0), torch.float32)


def test_of_averages_the_images_own_moments() -> None:
    x = torch.randn(7, 3, 5, 5) * torch.linspace(0.5, 3, 7).view(7, 1, 1, 1) + 1
    whole = rbnorm.MatchMoments.of([(part, torch.zeros(len(part))) for part in x.split(3)])
    torch.testing.assert_close(whole.mean, x.mean())
    torch.testing.assert_close(whole.std, x.std((1, 2, 3), correction=0).mean())
    channels = rbnorm.MatchMoments.of([{"pixels": x}], "mean", 0.5, by_channel=True)
    torch.testing.assert_close(channels.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(channels.std, x.std((2, 3), correction=0).mean(0))
    assert (channels.match, channels.strength, channels.dims) == ("mean", 0.5, 3)


def test_the_numbers_are_saved_with_the_model(tmp_path) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(rbnorm.MatchMoments(MEAN, STD), nn.Conv2d(3, 2, 3))
    other = nn.Sequential(rbnorm.MatchMoments(0.0, 1.0), nn.Conv2d(3, 2, 3))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("match", ["mean", "contrast", "both"])
@pytest.mark.parametrize("by_channel", [False, True])
def test_the_onnx_graph_agrees(match: str, by_channel: bool, tmp_path) -> None:
    x = torch.randn(4, 3, 8, 6) * 2 + 1
    module = rbnorm.MatchMoments.of([x / 3], match, 0.5, by_channel=by_channel).eval()
    program = to_onnx(module, x)
    assert sum(node.op_type.startswith("Reduce") for node in program.model.graph) <= 2
    program.save(tmp_path / "match.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "match.onnx")
    other = torch.randn(1, 3, 5, 9) - 2
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert_close(torch.from_numpy(found), module(other).double(), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, "all"), "match must be one of mean, contrast, both, got 'all'"),
        ((0.0, 1.0, "both", 2.0), "strength must be from 0 to 1, got 2.0"),
        ((0.0, 0.0), "std positive"),
        ((float("nan"), 1.0), "must be finite numbers"),
        (([0.0, 1.0], 1.0), "one or one a channel"),
    ],
)
def test_what_cannot_be_matched_is_refused(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rbnorm.MatchMoments(*arguments)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch, got none"),
        ([torch.randn(4, 3)], "must hold tensors"),
        ([torch.ones(2, 3, 4, 4)], "std positive"),
    ],
)
def test_data_without_contrast_to_match_is_refused(batches, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rbnorm.MatchMoments.of(batches)


def test_an_input_with_too_few_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="input must have 3 axes or more, got 2"):
        rbnorm.MatchMoments(0.0, 1.0)(torch.randn(4, 4))
