"""The commands and their options."""

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rbnorm_cli.domains import add_domains_options
from rbnorm_cli.errors import UsageError
from rbnorm_cli.names import CORRUPTIONS, NETWORKS, studies
from rbnorm_cli.options import add_options

CONTINUES = "the same command again continues after the last finished run"


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

    def add(declare: Callable[[Parser], None], interrupted: str, about: str, more: str) -> None:
        command = commands.add_parser(
            declare.__name__.removeprefix("_").replace("_", " "),
            help=about,
            description=more,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(interrupted=interrupted)
        declare(command)

    add(
        _compare,
        CONTINUES,
        "train one network with several norms and compare them",
        "Train one network with several norms, batch sizes and seeds; write report.html and print "
        "a table. The same command again continues what was interrupted.",
    )
    add(
        _study,
        CONTINUES,
        "run the studies behind the project's claims",
        "Run studies: choose each norm's learning rate on held-out images, train every arm with "
        "every seed, and draw a page for each study. The same command again continues what was "
        "interrupted.",
    )
    add(
        _study_domains,
        CONTINUES,
        "fine-tune on some domains and test on another",
        "Fine-tune a pretrained network on all domains but one and test it on that one, with "
        "BatchNorm and RBN; choose the learning rates on source images. The same command again "
        "continues what was interrupted.",
    )
    add(
        _train,
        "the same command again continues from the newest checkpoint",
        "train one network at full size, as on ImageNet",
        "Train one network with one norm by the ImageNet recipe of ResNet, in any number of "
        "processes, with checkpoints. The same command again continues.",
    )
    add(
        _diagnose,
        "no file has changed",
        "show where batch statistics fail on a model's own data",
        "Measure where instances leave the running statistics of a model's BatchNorm or RBN "
        "layers, and what RBN learnt; write diagnosis.json and report.html.",
    )
    add(
        _explain,
        "no file has changed",
        "write a page that explains RBN on real images in a real network",
        "Train a small network on parts of two photographs that scikit-learn has, and write "
        "explain.html: the formulas of RBN with sliders, in English and Chinese.",
    )
    add(
        _bench,
        "the parts of the benchmark that had ended are kept",
        "time RBN next to BatchNorm and the literal definition",
        "Time BatchNorm, RBN and the literal definition of RBN call by call in turn, as layers on "
        "the sizes of ResNet-50 and CIFAR networks and in a whole ResNet-50; write the rows and a "
        "figure, print the ratios to BatchNorm and the goals.",
    )
    add(
        _convert,
        "nothing was written",
        "turn a checkpoint of BatchNorm or of the official RBN into one of rbnorm",
        "Read a state dict from IN without running anything in it, turn BatchNorm layers into RBN "
        "of the same function, or the official RBN's shapes into rbnorm's, and write OUT.",
    )
    return parser


def _compare(parser: Parser) -> None:
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
    )
    parser.add_argument(
        "--shifted",
        nargs="*",
        default=["contrast:5"],
        help=f"test on corrupted images, too: list of {', '.join(CORRUPTIONS)}, severities from 1 "
        "to 5 as in noise:5, otherwise 3; nothing for none",
        metavar="KIND",
    )
    parser.add_argument(
        "--save-models",
        action="store_true",
        help="keep the trained models in the folder's models/, for rbnorm diagnose --model FILE",
    )


def _study(parser: Parser) -> None:
    add: Any = parser.add_argument
    add(
        "names",
        nargs="+",
        help=f"{', '.join(studies())}, or all; all leaves out segmentation and cifar, which have "
        "data of their own; cost draws what rbnorm bench --parts norms has measured",
        metavar="NAME",
    )
    add_options(
        parser,
        data="fashion-mnist",
        data_root=None,
        model=("cifar-resnet8", "the network of all studies; as in compare"),
    )
    add(
        "--networks",
        nargs="*",
        default=list(NETWORKS),
        help="further networks of the study networks",
        metavar="MODEL",
    )
    add_options(parser, seeds=10, epochs=6, batch_size=32)
    add(
        "--rates",
        nargs="+",
        default=["0.05", "0.1", "0.2", "0.4"],
        help="peak learning rates of which each norm gets the best",
        metavar="LR",
    )
    add("--tuning-seeds", type=int, default=2, help="seeds that choose it", metavar="N")
    add("--tuning-epochs", type=int, help="epochs of these runs; as in the others", metavar="N")
    add_options(
        parser,
        label_smoothing=0.0,
        weight_decay=5e-4,
        mixed_precision="no",
        limit=10000,
        test_limit=None,
        image_size=None,
        workers=0,
    )
    add("--clean-only", action="store_true", help="do not test on corrupted images")
    add("--trace", action="store_true", help="test every epoch, and measure layers' features")
    add("--shard", default="1/1", help="run the i-th of n parts, as in 1/4", metavar="i/n")
    add(
        "--ray",
        help="run side by side on a Ray cluster: auto, an address, or local for one of its own",
        metavar="ADDRESS",
    )
    add("--estimate", action="store_true", help="say how long the missing runs take, and stop")
    add("--no-run", action="store_true", help="run nothing, only draw the pages")
    add_options(parser, out=(Path("rbnorm-study"), "folder of records and pages"))


def _study_domains(parser: Parser) -> None:
    add_domains_options(parser)


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
        sync_norm=False,
        ema=None,
        limit=None,
        image_size=None,
        seed=0,
        workers=4,
    )
    add: Any = parser.add_argument
    add("--checkpoint-every", type=int, default=1000, help="steps; and every epoch", metavar="N")
    add("--tracker", default="tensorboard", help="none, or one that accelerate knows")
    add("--evaluate", action="store_true", help="only evaluate the newest checkpoint")
    add_options(parser, out=(Path("rbnorm-train"), "folder of the checkpoints"))


def _diagnose(parser: Parser) -> None:
    add: Any = parser.add_argument
    add(
        "--model",
        required=True,
        help="as in compare; or a file: a model kept by compare --save-models, one of torch.save, "
        "or FILE.py with a function model() that makes it; FILE.py and torch.save run code",
        metavar="NAME|PATH",
    )
    add("--checkpoint", type=Path, help="weights: a state dict in .safetensors or torch.save")
    add("--pretrained", action="store_true", help="weights of torchvision or timm")
    add("--random", action="store_true", help="no weights: diagnose the network as initialised")
    add_options(
        parser,
        data=(None, "as in compare; by default what the model was trained on, or digits"),
        data_root=None,
        shifted=None,
        limit=(None, "use this many held-out images"),
        batch_size=(32, "images at a time"),
        image_size=None,
    )
    add(
        "--classes",
        help="number of the model's classes, if not the data's; or a file with the name of each, "
        "one a line, as the folders of the images are called",
        metavar="N|FILE",
    )
    add("--device", help="cpu, cuda or mps; by default the accelerator there is")
    add(
        "--counterfactuals",
        action="store_true",
        help="accuracies without centring and without scaling",
    )
    add(
        "--remedies",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --shifted, try what wins back the accuracy that the second data set costs",
    )
    add("--budget", type=float, default=300.0, help="seconds for the remedies", metavar="S")
    add(
        "--fine-tune",
        type=int,
        help="try training on as it is and converted to RBN, too, for this many steps",
        metavar="STEPS",
    )
    add_options(parser, out=(Path("rbnorm-diagnosis"), "folder of JSON and report"))


def _explain(parser: Parser) -> None:
    add_options(parser, out=(Path("rbnorm-explain"), "folder of the page"))


def _bench(parser: Parser) -> None:
    add: Any = parser.add_argument
    add(
        "--parts",
        nargs="+",
        default=["layers", "short", "compiled", "models", "mobilenet"],
        help="list of layers, short, compiled, models, mobilenet, compiled-models, norms, "
        "norms-resnet50, and "
        "exported models as onnxruntime-resnet18, openvino-resnet18, and either with "
        "mobilenet_v3_large",
        metavar="PART",
    )
    add("--repeats", type=int, default=15, help="timings of each, fewer where slow", metavar="N")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where")
    add_options(parser, out=(Path("rbnorm-bench"), "folder of rows and figure"))


def _convert(parser: Parser) -> None:
    suffixes = "a .safetensors, .pt or .pth file"
    parser.add_argument("source", type=Path, metavar="IN", help=suffixes)
    parser.add_argument("target", type=Path, metavar="OUT", help=suffixes)
