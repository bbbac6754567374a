"""The trained network and its data, as fixtures."""

import copy

import pytest
import torch
from planted import batches, images, network
from torch import Tensor, nn


@pytest.fixture(scope="session")
def _trained() -> nn.Module:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x, labels in batches(*images(1600, 1)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


@pytest.fixture
def model(_trained: nn.Module) -> nn.Module:
    return copy.deepcopy(_trained)


@pytest.fixture(scope="session")
def first() -> list[tuple[Tensor, Tensor]]:
    return batches(*images(200, 2))


@pytest.fixture(scope="session")
def second(first: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same images in brighter light: the mean of the first layer's input is all that moved."""
    return [(x + 3, labels) for x, labels in first]
