"""Small data on disk, and the browser that pages are opened in."""

import shutil

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from playwright.sync_api import sync_playwright


@pytest.fixture(autouse=True)
def _fresh_state():
    """A process has one precision for good: forget it between tests."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def image_folder(tmp_path):
    """Two classes that differ in brightness, 10 images each of 16 x 16."""
    torch.manual_seed(0)
    for label, brightness in (("dark", 40), ("light", 200)):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(10):
            noise = torch.randint(0, 50, (16, 16, 3), dtype=torch.uint8) + brightness
            Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no browser found: install one, for example with `apt-get install chromium`")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
