"""The command line: arguments in, exit status out."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import rbnorm
from rbnorm.lab.config import CORRUPTIONS, DATA, LR_BATCH_SIZE, MIXED_PRECISIONS, NETWORKS, NORMS
from rbnorm.lab.domains.options import add_options as add_domains_options
from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.training.options import add_options as add_train_options

# A command imports what it runs: libraries that take seconds to load must not delay --help.


def _compare(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.compare import Study, compare  # noqa: PLC0415

    values = {field.name: getattr(options, field.name) for field in fields(Study)}
    values["norms"] = _items(options.norms)
    try:
        values["batch_sizes"] = [int(item) for item in _items(options.batch_sizes)]
    except ValueError as error:
        raise UsageError(f"batch sizes are whole numbers ({first_line(error)})") from error
    compare(Study(**values), options.out, command, save_models=options.save_models)


def _bench(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.bench.command import bench  # noqa: PLC0415

    bench(_items(options.parts), options.repeats, options.device, options.out)


def _convert(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.state_files import convert_file  # noqa: PLC0415

    print(convert_file(options.source, options.target))


def _study(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.studies.arms import Settings  # noqa: PLC0415
    from rbnorm.lab.studies.command import study  # noqa: PLC0415

    values = {field.name: getattr(options, field.name) for field in fields(Settings)}
    values["networks"] = tuple(_items(options.networks))
    values["rates"] = tuple(_numbers(options.rates))
    study(
        _items(options.names),
        Settings(**values),
        options.out,
        command,
        data_root=options.data_root,
        shard=options.shard,
        ray=options.ray,
        run=not options.no_run,
    )


def _diagnose(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.diagnose import Request, diagnose  # noqa: PLC0415

    values = {field.name: getattr(options, field.name) for field in fields(Request)}
    diagnose(Request(**values), options.out, command)


def _explain(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.explain.page import explain  # noqa: PLC0415

    explain(options.out, command)


def _train(options: argparse.Namespace, command: str) -> None:
    from rbnorm.lab.training.command import Request, train  # noqa: PLC0415

    values = {field.name: getattr(options, field.name) for field in fields(Request)}
    train(Request(**values), options.out)


def _numbers(values: Sequence[str]) -> list[float]:
    try:
        return [float(item) for item in _items(values)]
    except ValueError as error:
        raise UsageError(f"learning rates are numbers ({first_line(error)})") from error


def _items(values: Sequence[str]) -> list[str]:
    """A list given with commas, with spaces, or with both."""
    return [item for value in values for item in value.split(",") if item]


_DOMAINS = "study domains"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None for the process's own.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # the studies with options of their own
    joined = [_DOMAINS, *given[2:]] if given[:2] == _DOMAINS.split() else given
    try:
        options = _parser().parse_args(joined)
        try:
            options.run(options, shlex.join(["rbnorm", *given]))
        except KeyboardInterrupt:
            print(f"rbnorm: interrupted; {options.kept}.", file=sys.stderr)
            return 130
    except UsageError as error:
        print(f"rbnorm: {error}.".replace("?.", "?"), file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rbnorm", description=rbnorm.__doc__)
    parser.add_argument("--version", action="version", version=f"rbnorm {rbnorm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compare(
        commands.add_parser(
            "compare",
            help="train one network with several norms and compare them",
            description="Train one network with several norms, batch sizes and seeds; print a "
            "table and write report.html. The same command again continues what was interrupted.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    _add_study(
        commands.add_parser(
            "study",
            help="run the studies behind the project's claims",
            description="Run studies: choose each norm's learning rate on held-out images, train "
            "every arm with every seed, and draw a page for each study. The same command again "
            "continues what was interrupted.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    add_domains_options(
        commands.add_parser(
            _DOMAINS,
            help="fine-tune on some domains and test on another",
            description="Fine-tune a pretrained network on all domains but one and test it on that "
            "one, with BatchNorm and RBN; choose the learning rates on source images. The same "
            "command again continues what was interrupted.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    training = commands.add_parser(
        "train",
        help="train one network at full size, as on ImageNet",
        description="Train one network with one norm by the ImageNet recipe of ResNet, in any "
        "number of processes, with checkpoints. The same command again continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    training.set_defaults(
        run=_train, kept="the same command again continues from the newest checkpoint"
    )
    add_train_options(training)
    _add_diagnose(
        commands.add_parser(
            "diagnose",
            help="show where batch statistics fail on a model's own data",
            description="Measure where instances leave the running statistics of a model's "
            "BatchNorm or RBN layers, and what RBN learnt; write diagnosis.json and report.html.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    _add_explain(
        commands.add_parser(
            "explain",
            help="write a page that explains RBN on real images in a real network",
            description="Train a small network on parts of two photographs that scikit-learn has, "
            "and write explain.html: the formulas of RBN with sliders, in English and Chinese.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    _add_bench(
        commands.add_parser(
            "bench",
            help="time RBN next to BatchNorm and the literal definition",
            description="Time BatchNorm, RBN and the literal definition of RBN call by call in "
            "turn, as layers on the sizes of ResNet-50 and CIFAR networks and in a whole "
            "ResNet-50; write the rows and a figure, print the ratios to BatchNorm and the goals.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    _add_convert(
        commands.add_parser(
            "convert",
            help="turn a checkpoint of BatchNorm or of the official RBN into one of rbnorm",
            description="Read a state dict from IN without running anything in it, turn BatchNorm "
            "layers into RBN of the same function, or the official RBN's shapes into rbnorm's, and "
            "write OUT.",
        )
    )
    return parser


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_convert, kept="nothing was written")
    suffixes = "a .safetensors, .pt or .pth file"
    parser.add_argument("source", type=Path, metavar="IN", help=suffixes)
    parser.add_argument("target", type=Path, metavar="OUT", help=suffixes)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_explain, kept="no file has changed")
    parser.add_argument(
        "--out", type=Path, default=Path("rbnorm-explain"), help="folder of the page"
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_bench, kept="the parts of the benchmark that had ended are kept")
    add = parser.add_argument
    add(
        "--parts",
        nargs="+",
        default=["layers", "compiled", "models"],
        help="list of layers, compiled, models, compiled-models, norms, norms-resnet50, and "
        "exported models as onnxruntime-resnet18, openvino-resnet18, and either with "
        "mobilenet_v3_large",
        metavar="PART",
    )
    add("--repeats", type=int, default=15, help="timings of each, fewer where slow", metavar="N")
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=Path("rbnorm-bench"), help="folder of rows and figure")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(
        run=_compare, kept="the same command again continues after the last finished run"
    )
    add = parser.add_argument
    add("--data", default="digits", help=f"one of {', '.join(DATA)}")
    add("--data-root", type=Path, help="folder of the files of fashion-mnist, cifar10 and cifar100")
    add(
        "--model",
        default="cifar-resnet8",
        help="cifar-resnet8, 14, 20, ..., a name of torchvision or timm, or small:NAME",
    )
    add(
        "--norms",
        nargs="+",
        default=["bn", "gn", "ln", "in", "rbn", "rbn-center", "rbn-scale"],
        help=f"list of {', '.join(NORMS)}; options follow as in rbn:statistic=max:restrict=tanh",
        metavar="NORM",
    )
    add(
        "--batch-sizes",
        nargs="+",
        default=["64", "8"],
        help="list of batch sizes, over all processes",
        metavar="N",
    )
    add("--seeds", type=int, default=3, help="number of seeds", metavar="N")
    add("--epochs", type=int, default=3, help="passes over the training images", metavar="N")
    add(
        "--lr",
        type=float,
        default=0.1,
        help=f"peak learning rate at batch size {LR_BATCH_SIZE}, scaled in proportion to others",
    )
    add("--weight-decay", type=float, default=5e-4, help="weight decay")
    add("--mixed-precision", default="no", help=f"one of {', '.join(MIXED_PRECISIONS)}")
    add("--limit", type=int, help="use this many training images", metavar="N")
    add("--image-size", type=int, help="resize images to this side", metavar="N")
    add("--workers", type=int, default=0, help="processes that load images", metavar="N")
    add("--out", type=Path, default=Path("rbnorm-compare"), help="folder of records and report")
    add(
        "--save-models",
        action="store_true",
        help="keep the trained models in the folder's models/, for rbnorm diagnose --model FILE",
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(
        run=_study, kept="the same command again continues after the last finished run"
    )
    add = parser.add_argument
    add(
        "names",
        nargs="+",
        help="primary, ablation, shift, batch-size, init, fine-tune, networks, cost, or all; all "
        "draws the page of cost, and only cost by its name measures it",
        metavar="NAME",
    )
    add("--data", default="fashion-mnist", help=f"one of {', '.join(DATA)}")
    add("--data-root", type=Path, help="folder of the files of fashion-mnist, cifar10 and cifar100")
    add("--model", default="cifar-resnet8", help="the network of all studies; as in compare")
    add(
        "--networks",
        nargs="*",
        default=list(NETWORKS),
        help="further networks of the study networks",
        metavar="MODEL",
    )
    add("--seeds", type=int, default=10, help="number of seeds", metavar="N")
    add("--epochs", type=int, default=6, help="passes over the training images", metavar="N")
    add("--batch-size", type=int, default=32, help="images per optimiser step", metavar="N")
    add(
        "--rates",
        nargs="+",
        default=["0.05", "0.1", "0.2", "0.4"],
        help="peak learning rates of which each norm gets the best",
        metavar="LR",
    )
    add("--tuning-seeds", type=int, default=2, help="seeds that choose it", metavar="N")
    add("--weight-decay", type=float, default=5e-4, help="weight decay")
    add("--mixed-precision", default="no", help=f"one of {', '.join(MIXED_PRECISIONS)}")
    add("--limit", type=int, default=10000, help="use this many training images", metavar="N")
    add("--image-size", type=int, help="resize images to this side", metavar="N")
    add("--workers", type=int, default=0, help="processes that load images", metavar="N")
    add("--shard", default="1/1", help="run the i-th of n parts, as in 1/4", metavar="i/n")
    add(
        "--ray",
        help="run side by side on a Ray cluster: auto, an address, or local for one of its own",
        metavar="ADDRESS",
    )
    add("--no-run", action="store_true", help="run nothing, only draw the pages")
    add("--out", type=Path, default=Path("rbnorm-study"), help="folder of records and pages")


def _add_diagnose(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_diagnose, kept="no file has changed")
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="as in compare; or a file: a model kept by compare --save-models, one of torch.save, "
        "or FILE.py with a function model() that makes it; FILE.py and torch.save run code",
        metavar="NAME|PATH",
    )
    add("--checkpoint", type=Path, help="weights: a state dict in .safetensors or torch.save")
    add("--converted", type=Path, help="weights after a conversion to RBN, to compare with")
    add("--data", help=f"one of {', '.join(DATA)}; by default what the model was trained on")
    add("--data-root", type=Path, help="folder of the files of fashion-mnist, cifar10 and cifar100")
    add(
        "--shifted",
        help=f"a second data set: another of --data, train, or one of {', '.join(CORRUPTIONS)}; "
        "severities from 1 to 5 as in noise:5, otherwise 3",
        metavar="DATA",
    )
    add("--limit", type=int, help="use this many held-out images", metavar="N")
    add("--batch-size", type=int, default=32, help="images at a time", metavar="N")
    add("--image-size", type=int, help="resize images to this side", metavar="N")
    add("--classes", type=int, help="classes of the model, if not the data's", metavar="N")
    add("--device", help="cpu, cuda or mps; by default the accelerator there is")
    add(
        "--counterfactuals",
        action="store_true",
        help="accuracies without parts of the calibration: four passes for every RBN layer",
    )
    add("--out", type=Path, default=Path("rbnorm-diagnosis"), help="folder of JSON and report")
