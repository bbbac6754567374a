"""The options of a run, declared once for all commands."""

import argparse
from pathlib import Path
from typing import Any, Final

from rbnorm_cli.names import CORRUPTIONS, DATA, MIXED_PRECISIONS, NORMS

_N: Final[dict[str, Any]] = {"type": int, "metavar": "N"}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "data": {"help": f"one of {', '.join(DATA)}"},
    "data_root": {
        "type": Path,
        "help": "folder of the files of fashion-mnist, cifar10, cifar100, cifar10-jpeg and camvid",
    },
    "model": {"help": "cifar-resnet8, 14, 20, ..., a name of torchvision or timm, or small:NAME"},
    "norm": {"help": "one of the norms of compare, with its options"},
    "norms": {
        "nargs": "+",
        "metavar": "NORM",
        "help": f"list of {', '.join(NORMS)}; options follow as in rbn:statistic=max:restrict=tanh",
    },
    "batch_size": {**_N, "help": "images of one optimiser step, over all processes"},
    "batch_sizes": {
        "nargs": "+",
        "metavar": "N",
        "help": "list of batch sizes, over all processes",
    },
    "accumulate": {**_N, "help": "forward passes of one step"},
    "seed": {**_N, "help": "of weights, order and augmentation"},
    "seeds": {**_N, "help": "number of seeds"},
    "epochs": {**_N, "help": "passes over the training images"},
    "lr": {
        "type": float,
        "help": "peak learning rate at batch size 64, scaled in proportion to others",
    },
    "decay_every": {**_N, "help": "epochs after which the learning rate is divided by 10"},
    "label_smoothing": {
        "type": float,
        "metavar": "SHARE",
        "help": "of the training labels, spread evenly over all classes",
    },
    "weight_decay": {"type": float, "help": "weight decay of every parameter"},
    "mixed_precision": {"help": f"one of {', '.join(MIXED_PRECISIONS)}"},
    "sync_norm": {"action": "store_true", "help": "batch statistics over all processes"},
    "ema": {"type": float, "help": "decay of an average of the weights, such as 0.9999"},
    "limit": {**_N, "help": "use this many training images"},
    "test_limit": {**_N, "help": "test on this many images"},
    "image_size": {**_N, "help": "resize images to this side"},
    "workers": {**_N, "help": "processes that load images"},
    "out": {"type": Path, "help": "folder to write to"},
    "shifted": {
        "metavar": "DATA",
        "help": f"a second data set: another of --data, train, or one of {', '.join(CORRUPTIONS)}; "
        "severities from 1 to 5 as in noise:5, otherwise 3",
    },
}


def add_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Declare options in the order of their defaults, which makes that of the help.

    Args:
        parser: The command's.
        defaults: By the option's name its default; ``...`` where it must be given. A pair is a
            default and a help of this command's own.
    """
    for name, given in defaults.items():
        default, about = given if isinstance(given, tuple) else (given, None)
        options = dict(_OPTIONS[name])
        if about:
            options["help"] = about
        if default is ...:
            options["required"] = True
        elif options.get("action") != "store_true":
            options["default"] = default
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
