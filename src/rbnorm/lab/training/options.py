"""The options of ``rbnorm train``."""

import argparse
from pathlib import Path

from rbnorm.lab.config import DATA, MIXED_PRECISIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the fields of :class:`rbnorm.lab.training.command.Request`, and ``--out``."""
    add = parser.add_argument
    add("--data", required=True, help=f"one of {', '.join(DATA)}")
    add("--data-root", type=Path, help="folder of the files of fashion-mnist and cifar10")
    add("--model", default="resnet50", help="cifar-resnetN, or a name of torchvision or timm")
    add("--norm", default="rbn", help="as in compare")
    add("--batch-size", type=int, default=256, help="images of one step", metavar="N")
    add("--accumulate", type=int, default=1, help="forward passes of one step", metavar="N")
    add("--epochs", type=int, default=100, help="passes over the training images", metavar="N")
    add("--lr", type=float, default=0.1, help="learning rate at batch size 256, scaled to others")
    add("--decay-every", type=int, default=30, help="epochs to a tenth of it", metavar="N")
    add("--weight-decay", type=float, default=1e-4, help="weight decay of every parameter")
    add("--mixed-precision", default="no", help=f"one of {', '.join(MIXED_PRECISIONS)}")
    add("--sync-norm", action="store_true", help="batch statistics over all processes")
    add("--ema", type=float, help="decay of an average of the weights, such as 0.9999")
    add("--limit", type=int, help="use this many training images", metavar="N")
    add("--image-size", type=int, help="resize images to this side", metavar="N")
    add("--seed", type=int, default=0, help="of weights, order and augmentation", metavar="N")
    add("--workers", type=int, default=4, help="processes that load images", metavar="N")
    add("--checkpoint-every", type=int, default=1000, help="steps; and every epoch", metavar="N")
    add("--tracker", default="tensorboard", help="none, or one that accelerate knows")
    add("--evaluate", action="store_true", help="only evaluate the newest checkpoint")
    add("--out", type=Path, default=Path("rbnorm-train"), help="folder of the checkpoints")
