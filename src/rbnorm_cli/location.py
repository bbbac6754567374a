"""The options of ``rbnorm study location``."""

import argparse
from pathlib import Path

CONDITIONS = ("contrast:3", "contrast:5", "brightness:5", "noise:3", "blur:3", "jpeg:3")


def add_location_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the command."""
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        required=True,
        help="folder of labelled images, as FOLDER/CLASS/IMAGE; with --kept as "
        "FOLDER/DOMAIN/CLASS/IMAGE",
        metavar="FOLDER",
    )
    add("--model", default="torchvision:mobilenet_v2", help="the network")
    add("--weights", type=Path, help="file of its weights", metavar="FILE")
    add(
        "--kept",
        type=Path,
        nargs="+",
        default=[],
        help="networks that study domains kept, each tested on the domain it has not seen",
        metavar="FILE",
    )
    add(
        "--conditions",
        nargs="*",
        default=list(CONDITIONS),
        help="corruptions with their severities, for --weights",
        metavar="KIND:SEVERITY",
    )
    add("--limit", type=int, default=1000, help="use this many images", metavar="N")
    add("--image-size", type=int, default=160, help="side of the images", metavar="N")
    add("--device", default="cpu", help="cpu, cuda, ...")
    add("--no-run", action="store_true", help="run nothing, only print the table")
    add("--out", type=Path, default=Path("rbnorm-study"), help="folder of the records")
