"""The options of ``rbnorm study domains``."""

import argparse
from pathlib import Path


def add_domains_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the command."""
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        default=Path("data/pacs"),
        help="folder of the images, as FOLDER/DOMAIN/CLASS/IMAGE",
        metavar="FOLDER",
    )
    add("--model", default="torchvision:mobilenet_v2", help="the pretrained network")
    add("--weights", type=Path, help="file of its weights; torchvision's own by default")
    add("--targets", nargs="+", help="domains to leave out in turn; by default all")
    add("--seeds", type=int, default=5, help="seeds of BN and RBN", metavar="N")
    add(
        "--few-seeds",
        type=int,
        default=3,
        help="seeds of the other arms, and those tested with other statistics, too",
        metavar="N",
    )
    add("--epochs", type=int, default=8, help="passes over the training images", metavar="N")
    add("--batch-size", type=int, default=96, help="images per optimiser step", metavar="N")
    add(
        "--rates",
        nargs="+",
        default=["0.003", "0.01", "0.02"],
        help="peak learning rates of which each arm gets the best",
        metavar="LR",
    )
    add(
        "--calibration-rates",
        nargs="+",
        default=["10", "1", "30", "100"],
        help="those of RBN's calibration, in multiples; the first while the others are chosen",
        metavar="X",
    )
    add("--tuning-seeds", type=int, default=1, help="seeds that choose the rates", metavar="N")
    add("--weight-decay", type=float, default=1e-4, help="weight decay")
    add("--image-size", type=int, default=96, help="side of the images", metavar="N")
    add("--device", default="cpu", help="cpu, cuda, ...")
    add("--processes", type=int, default=1, help="runs made side by side", metavar="N")
    add("--minutes", type=float, help="stop after so many minutes", metavar="M")
    add("--cut", action="store_true", help="take fewer epochs where all would not fit")
    add("--estimate", action="store_true", help="say how long it would take, and stop")
    add("--keep-models", action="store_true", help="keep BN's networks of seed 0 in --out")
    add("--no-run", action="store_true", help="run nothing, only draw the page")
    add("--no-page", action="store_true", help="draw no page, only run")
    add("--out", type=Path, default=Path("rbnorm-study"), help="folder of records and page")
