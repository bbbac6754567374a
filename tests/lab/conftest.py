"""Small data on disk."""

import pytest
import torch
from PIL import Image


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
