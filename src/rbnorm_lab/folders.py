"""The folder that a command writes to: refused before the work if it cannot be one, made after."""

from rbnorm_cli.checks import check_folder, make_folder

__all__ = ["check_folder", "make_folder"]
