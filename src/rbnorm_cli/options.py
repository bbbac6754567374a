"""The options of all commands, each declared once."""

import argparse
from pathlib import Path
from typing import Any, Final

from rbnorm_lab.names import CORRUPTIONS, DATA, MIXED_PRECISIONS, NORMS

_N: Final[dict[str, Any]] = {"type": int, "metavar": "N"}
_LIST: Final[dict[str, Any]] = {"nargs": "+"}
_FLAG: Final[dict[str, Any]] = {"action": "store_true"}
_PATH: Final[dict[str, Any]] = {"type": Path}
_KINDS: Final = (
    f"one of {', '.join(CORRUPTIONS)}; severities from 1 to 5 as in noise:5, otherwise 3"
)
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "accumulate": {**_N, "help": "forward passes of one step"},
    "batch_size": {**_N, "help": "images of one optimiser step, over all processes"},
    "batch_sizes": {**_LIST, "metavar": "N", "help": "list of batch sizes, over all processes"},
    "budget": {"type": float, "metavar": "S", "help": "seconds for the remedies"},
    "calibration_rates": {
        **_LIST,
        "metavar": "X",
        "help": "those of RBN's calibration, in multiples; the first while the others are chosen",
    },
    "checkpoint": {**_PATH, "help": "weights: a state dict in .safetensors or torch.save"},
    "classes": {
        "metavar": "N|FILE",
        "help": "number of the model's classes, if not the data's; or a file with the name of "
        "each, one a line, as the folders of the images are called",
    },
    "clean_only": {**_FLAG, "help": "do not test on corrupted images"},
    "data": {"help": f"one of {', '.join(DATA)}"},
    "data_root": {
        **_PATH,
        "help": "folder of the files of fashion-mnist, cifar10, cifar100, cifar10-jpeg and camvid",
    },
    "decay_every": {**_N, "help": "epochs after which the learning rate is divided by 10"},
    "device": {"help": "cpu, cuda or mps; by default the accelerator there is"},
    "epochs": {**_N, "help": "passes over the training images"},
    "few_seeds": {
        **_N,
        "help": "seeds of the other arms, and those tested with other statistics, too",
    },
    "fine_tune": {
        **_N,
        "help": "try training on as it is and converted to RBN, too, for so many steps",
    },
    "image_size": {**_N, "help": "resize images to this side"},
    "images": {
        **_PATH,
        "metavar": "FOLDER",
        "help": "folder of the images, as FOLDER/DOMAIN/CLASS/IMAGE",
    },
    "keep_models": {**_FLAG, "help": "keep BN's networks of seed 0 in --out"},
    "limit": {**_N, "help": "use this many training images"},
    "lr": {
        "type": float,
        "help": "peak learning rate at batch size 64, scaled in proportion to others",
    },
    "mixed_precision": {"help": f"one of {', '.join(MIXED_PRECISIONS)}"},
    "model": {"help": "cifar-resnet8, 14, 20, ..., a name of torchvision or timm, or small:NAME"},
    "networks": {
        "nargs": "*",
        "metavar": "MODEL",
        "help": "further networks of the study networks",
    },
    "no_run": {**_FLAG, "help": "run nothing, only draw the pages"},
    "norm": {"help": "one of the norms of compare, with its options"},
    "norms": {
        **_LIST,
        "metavar": "NORM",
        "help": f"list of {', '.join(NORMS)}; options follow as in rbn:statistic=max:restrict=tanh",
    },
    "out": {**_PATH, "help": "folder to write to"},
    "parts": {
        **_LIST,
        "metavar": "PART",
        "help": "list of layers, short, compiled, models, mobilenet, compiled-models, norms and "
        "norms-resnet50",
    },
    "pretrained": {**_FLAG, "help": "weights of torchvision or timm"},
    "random": {**_FLAG, "help": "no weights: diagnose the network as initialised"},
    "rates": {
        **_LIST,
        "metavar": "LR",
        "help": "peak learning rates of which each norm, or each arm, gets the best",
    },
    "ray": {
        "metavar": "ADDRESS",
        "help": "run side by side on a Ray cluster: auto, an address, or local for one of its own",
    },
    "remedies": {
        "action": argparse.BooleanOptionalAction,
        "help": "with --shifted, try what wins back the accuracy that the second data set costs",
    },
    "repeats": {**_N, "help": "timings of each, fewer where slow"},
    "save_models": {
        **_FLAG,
        "help": "keep the trained models in the folder's models/, for rbnorm diagnose --model FILE",
    },
    "seed": {**_N, "help": "of weights, order and augmentation"},
    "seeds": {**_N, "help": "number of seeds"},
    "shard": {"metavar": "i/n", "help": "run the i-th of n parts, as in 1/4"},
    "shifted": {
        "metavar": "DATA",
        "help": f"a second data set: another of --data, train, or {_KINDS}",
    },
    "targets": {**_LIST, "help": "domains to leave out in turn; by default all"},
    "test_limit": {**_N, "help": "test on this many images"},
    "trace": {**_FLAG, "help": "test every epoch, and measure layers' features"},
    "tuning_epochs": {**_N, "help": "epochs of these runs; as in the others"},
    "tuning_seeds": {**_N, "help": "seeds that choose the rates"},
    "weight_decay": {"type": float, "help": "weight decay of every parameter"},
    "weights": {**_PATH, "help": "file of its weights; torchvision's own by default"},
    "workers": {**_N, "help": "processes that load images"},
}


def add_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Declare options in the order of their defaults, which makes that of the help.

    Args:
        parser: The command's.
        defaults: By the option's name its default; ``...`` where it must be given. A pair is a
            default and what else is this command's own: the help, or all that it changes.
    """
    for name, given in defaults.items():
        default, own = given if isinstance(given, tuple) else (given, {})
        options = {**_OPTIONS[name], **({"help": own} if isinstance(own, str) else own)}
        if default is ...:
            options["required"] = True
        elif options.get("action") != "store_true":
            options["default"] = default
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
