"""The commands and their options."""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from rbnorm_cli.options import add_options
from rbnorm_lab.errors import UsageError
from rbnorm_lab.names import CORRUPTIONS, studies

CONTINUES: Final = "the same command again continues after the last finished run"
UNCHANGED: Final = "no file has changed"


class _Help(argparse.HelpFormatter):
    """One that leaves the names of packages whole, so that a command can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(
            " ".join(text.split()),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )


class Parser(argparse.ArgumentParser):
    """One whose errors are sentences of the command line's kind."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)


class Command(NamedTuple):
    """A command.

    Attributes:
        declare: Adds its options to its parser.
        interrupted: What holds when it was interrupted.
        about: What it does, as the list of commands says it.
        more: What else its own help says.
    """

    declare: Callable[[Parser], None]
    interrupted: str
    about: str
    more: str


def make_parser(epilog: str) -> Parser:
    """The parser of all commands; ``command`` names the one that was chosen.

    Args:
        epilog: Stands below the help.
    """
    parser = Parser(
        prog="rbnorm",
        description="Representative Batch Normalization for PyTorch: experiments and checkpoints.",
        epilog=epilog,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "--print-completion", metavar="SHELL", help="print what bash, zsh or tcsh completes by"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (declare, interrupted, about, more) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}: {more}.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(interrupted=interrupted)
        declare(command)
    return parser


def joined(given: Sequence[str]) -> list[str]:
    """A command line in which a command of two words is one."""
    name = " ".join(given[:2])
    return [name, *given[2:]] if name in COMMANDS else list(given)


def _compare(parser: Parser) -> None:
    kinds = f"list of {', '.join(CORRUPTIONS)}, severities from 1 to 5 as in noise:5, otherwise 3"
    own = {"nargs": "*", "metavar": "KIND"}
    add_options(
        parser,
        data="digits",
        data_root=None,
        model="cifar-resnet8",
        norms=["bn", "gn", "ln", "in", "rbn", "rbn-center", "rbn-scale"],
        batch_sizes=["64", "8"],
        seeds=3,
        epochs=3,
        lr=0.1,
        weight_decay=5e-4,
        mixed_precision="no",
        limit=None,
        image_size=None,
        workers=0,
        out=(Path("rbnorm-compare"), "folder of records and report"),
        shifted=(
            ["contrast:5"],
            {**own, "help": f"test on corrupted images, too: {kinds}; nothing for none"},
        ),
        save_models=False,
    )


def _study(parser: Parser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        help=f"{', '.join(studies())}, or all; all leaves out segmentation and cifar, which have "
        "data of their own",
        metavar="NAME",
    )
    add_options(
        parser,
        data="fashion-mnist",
        data_root=None,
        model=("cifar-resnet8", "the network of all studies; as in compare"),
        networks=[
            f"small:{name}"
            for name in ("torchvision:mobilenet_v3_small", "timm:regnetx_002", "timm:cs3darknet_s")
        ],
        seeds=10,
        epochs=6,
        batch_size=32,
        rates=["0.05", "0.1", "0.2", "0.4"],
        tuning_seeds=2,
        tuning_epochs=None,
        weight_decay=5e-4,
        mixed_precision="no",
        limit=10000,
        test_limit=None,
        image_size=None,
        workers=0,
        clean_only=False,
        trace=False,
        shard="1/1",
        ray=None,
        no_run=False,
        out=(Path("rbnorm-study"), "folder of records and pages"),
    )


def _study_domains(parser: Parser) -> None:
    add_options(
        parser,
        images=Path("data/pacs"),
        model=("torchvision:mobilenet_v2", "the pretrained network"),
        weights=None,
        targets=None,
        seeds=(5, "seeds of BN and RBN"),
        few_seeds=3,
        epochs=8,
        batch_size=96,
        rates=["0.003", "0.01", "0.02"],
        calibration_rates=["10", "1", "30", "100"],
        tuning_seeds=1,
        weight_decay=(1e-4, "weight decay"),
        image_size=(96, "side of the images"),
        device=("cpu", "cpu, cuda, ..."),
        shard="1/1",
        keep_models=False,
        no_run=False,
        out=(Path("rbnorm-study"), "folder of records and page"),
    )


def _train(parser: Parser) -> None:
    add_options(
        parser,
        data=...,
        data_root=None,
        model="resnet50",
        norm="rbn",
        batch_size=256,
        accumulate=1,
        epochs=100,
        lr=(0.1, "learning rate at batch size 256, scaled in proportion to others"),
        decay_every=30,
        weight_decay=1e-4,
        mixed_precision="no",
        limit=None,
        image_size=None,
        seed=0,
        workers=4,
        out=(Path("rbnorm-train"), "folder of the checkpoints"),
    )


def _diagnose(parser: Parser) -> None:
    model = {
        "metavar": "NAME|PATH",
        "help": "as in compare; or a file: a model kept by compare --save-models, one of "
        "torch.save, or FILE.py with a function model() that makes it; FILE.py and torch.save run "
        "code",
    }
    add_options(
        parser,
        model=(..., model),
        checkpoint=None,
        pretrained=False,
        random=False,
        data=(None, "as in compare; by default what the model was trained on, or digits"),
        data_root=None,
        shifted=None,
        limit=(None, "use this many held-out images"),
        batch_size=(32, "images at a time"),
        image_size=None,
        classes=None,
        device=None,
        remedies=True,
        budget=300.0,
        fine_tune=(None, {"metavar": "STEPS"}),
        out=(Path("rbnorm-diagnosis"), "folder of JSON and report"),
    )


def _explain(parser: Parser) -> None:
    add_options(parser, out=(Path("rbnorm-explain"), "folder of the page"))


def _bench(parser: Parser) -> None:
    add_options(
        parser,
        parts=["layers", "short", "compiled", "models", "mobilenet"],
        repeats=15,
        device=("cpu", {"choices": ("cpu", "cuda"), "help": "where"}),
        out=(Path("rbnorm-bench"), "folder of rows and figure"),
    )


def _convert(parser: Parser) -> None:
    suffixes = "a .safetensors, .pt or .pth file"
    parser.add_argument("source", type=Path, metavar="IN", help=suffixes)
    parser.add_argument("target", type=Path, metavar="OUT", help=suffixes)


COMMANDS: Final = {
    "compare": Command(
        _compare,
        CONTINUES,
        "train one network with several norms and compare them",
        f"with every batch size and seed; write report.html and print a table; {CONTINUES}",
    ),
    "study": Command(
        _study,
        CONTINUES,
        "run the studies behind the project's claims",
        "choose each norm's learning rate on held-out images, train every arm with every seed, and "
        f"draw a page for each study; {CONTINUES}",
    ),
    "study domains": Command(
        _study_domains,
        CONTINUES,
        "fine-tune on some domains and test on another",
        "a pretrained network on all domains but one, with BatchNorm and RBN, whose learning rates "
        f"are chosen on source images; {CONTINUES}",
    ),
    "train": Command(
        _train,
        "the same command again continues from the newest checkpoint",
        "train one network at full size, as on ImageNet",
        "one norm by the ImageNet recipe of ResNet, in any number of processes, with checkpoints, "
        "from the newest of which the same command again continues",
    ),
    "diagnose": Command(
        _diagnose,
        UNCHANGED,
        "show where batch statistics fail on a model's own data",
        "measure where instances leave the running statistics of a model's BatchNorm or RBN "
        "layers, and what RBN learnt; write diagnosis.json and report.html",
    ),
    "explain": Command(
        _explain,
        UNCHANGED,
        "write a page that explains RBN on real images in a real network",
        "train a small network on parts of two photographs that scikit-learn has, and write "
        "explain.html: the formulas of RBN with sliders, in English and Chinese",
    ),
    "bench": Command(
        _bench,
        "the parts of the benchmark that had ended are kept",
        "time RBN next to BatchNorm and the literal definition",
        "call by call in turn, as layers on the sizes of ResNet-50 and CIFAR networks and in a "
        "whole ResNet-50; write the rows and a figure, print the ratios to BatchNorm",
    ),
    "convert": Command(
        _convert,
        "nothing was written",
        "turn a checkpoint of BatchNorm or of the official RBN into one of rbnorm",
        "read a state dict from IN without running anything in it, and write to OUT RBN of the "
        "same function for BatchNorm, or rbnorm's shapes for the official RBN's",
    ),
}
"""The commands by name; a study with options of its own is one of them."""
