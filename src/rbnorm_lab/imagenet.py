"""What images for networks pretrained on ImageNet are standardised by."""

from typing import Final

IMAGENET_MOMENTS: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel of raw values from 0 to 1."""
