"""What other libraries do to a BatchNorm in training, and to its state."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rbnorm

KINDS = [nn.BatchNorm2d, rbnorm.RepresentativeBatchNorm2d]


def images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, 6, 6, generator=generator).add_(1).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_fairscale_checkpoint_wrapper_counts_a_batch_once(kind: type[nn.Module]) -> None:
    """It takes the first pass out of the statistics and leaves the second in."""
    from fairscale.nn import checkpoint_wrapper

    plain, layer = kind(2), kind(2)
    part = checkpoint_wrapper(nn.Sequential(layer, nn.Sigmoid()))
    for seed in range(3):
        part(images(seed)).sum().backward()
        plain(images(seed))
    assert layer.num_batches_tracked == 3
    assert torch.equal(layer.running_mean, plain.running_mean)


@pytest.mark.parametrize("kind", KINDS)
def test_pfn_extras_checkpoint_halves_the_momentum(kind: type[nn.Module]) -> None:
    from pytorch_pfn_extras.utils.checkpoint import checkpoint

    plain, layer = kind(2), kind(2)
    for seed in range(3):
        checkpoint(layer, images(seed)).sum().backward()
        plain(images(seed))
    assert layer.momentum == pytest.approx(1 - math.sqrt(0.9))
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_pyro_trains_every_vector() -> None:
    import pyro
    from pyro import distributions
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoDelta
    from pyro.nn import PyroSample
    from pyro.nn.module import to_pyro_module_

    pyro.clear_param_store()
    norm = rbnorm.RepresentativeBatchNorm2d(3)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Flatten(), nn.Linear(48, 1))
    to_pyro_module_(net)
    net[3].weight = PyroSample(distributions.Normal(0.0, 1.0).expand([1, 48]).to_event(2))

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        mean = net(x).squeeze(-1)
        with pyro.plate("images", len(x)):
            pyro.sample("y", distributions.Normal(mean, 1.0), obs=y)

    guide = AutoDelta(pyro.poutine.block(model, hide=["y"]))
    trained = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    before = {name: value.detach().clone() for name, value in net[1].named_parameters()}
    for seed in range(3):
        trained.step(images(seed).detach(), torch.ones(4))
    assert len(before) == 5
    for name, value in net[1].named_parameters():
        assert not torch.equal(value, before[name]), name


def test_tabnet_loads_what_its_network_is_built_with(tmp_path: Path) -> None:
    """A class that converts where TabNet builds its network saves and loads; another does not."""
    from pytorch_tabnet.tab_model import TabNetRegressor

    class Converting(TabNetRegressor):
        def _set_network(self) -> None:
            super()._set_network()
            rbnorm.convert_batchnorm(self.network)

    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    model = Converting(n_d=4, n_a=4, n_steps=2, verbose=0, seed=0)
    model.fit(x, x[:, :1], max_epochs=2, batch_size=32, virtual_batch_size=16)
    path = model.save_model(str(tmp_path / "model"))
    loaded = Converting()
    loaded.load_model(path)
    assert rbnorm.assert_intact(loaded.network)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*center_weight"):
        TabNetRegressor().load_model(path)


def test_accelerate_dispatches_a_batchnorm_checkpoint(tmp_path: Path) -> None:
    """Into a model without memory, tensor by tensor, with RBN from the start or converted."""
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    def build(kind: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 3), kind(3))

    source, path = build(nn.BatchNorm2d), tmp_path / "model.bin"
    nn.init.uniform_(source[1].weight)
    torch.save(source.state_dict(), path)
    with init_empty_weights():
        models = [build(rbnorm.RepresentativeBatchNorm2d), build(nn.BatchNorm2d)]
        rbnorm.convert_batchnorm(models[1], preserve=False)
    x = images(0).detach()
    gate = torch.tensor(1.0).sigmoid()
    for model in models:
        loaded = load_checkpoint_and_dispatch(model, str(path), device_map={"": "cpu"})
        torch.testing.assert_close(loaded.eval()(x), gate * source.eval()(x))


def test_peft_saves_a_layer_whole(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 1)]
        return rbnorm.convert_batchnorm(nn.Sequential(*layers))

    model = get_peft_model(build(), LoraConfig(target_modules=["3"], modules_to_save=["1"]))
    model(images(0)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(parameter.grad)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    torch.testing.assert_close(loaded.eval()(images(1)), model.eval()(images(1)))


def test_higher_follows_every_vector_through_its_steps() -> None:
    import higher

    model = nn.Sequential(rbnorm.RepresentativeBatchNorm2d(2), nn.Flatten(), nn.Linear(72, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (inner, steps):
        steps.step(inner(images(0)).square().mean())
        inner(images(1)).square().mean().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_zennit_merges_nothing() -> None:
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlus

    model = nn.Sequential(nn.Conv2d(2, 3, 3), rbnorm.RepresentativeBatchNorm2d(3)).eval()
    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    with pytest.raises(ValueError, match="of zennit knows only BatchNorm"):
        composite.register(model)
    assert rbnorm.assert_intact(model, ["1"])
