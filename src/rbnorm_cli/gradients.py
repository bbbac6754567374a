"""The options of ``rbnorm study gradients``."""

import argparse
from pathlib import Path

from rbnorm_cli.options import add_options


def add_gradients_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the command."""
    add_options(
        parser,
        data="fashion-mnist",
        data_root=None,
        model=("cifar-resnet8", "the network; as in compare"),
        seeds=3,
        batch_size=32,
        lr=(0.2, "peak learning rate"),
        weight_decay=5e-4,
        mixed_precision="no",
        limit=10000,
        image_size=None,
    )
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps", metavar="N")
    parser.add_argument("--no-run", action="store_true", help="run nothing, only print the table")
    add_options(parser, out=(Path("rbnorm-study"), "folder of the records"))
