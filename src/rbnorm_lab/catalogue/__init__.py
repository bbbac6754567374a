"""The studies, a file each: its question, what is run for it, its limits, and its words in Chinese.

A file has a function ``study``, which makes the study of a command's settings and of the learning
rates that are chosen so far. Where it has the line ``OWN_DATA: Final = True``, ``rbnorm study all``
leaves it out; where it has ``COMMAND: Final = "..."``, that command runs it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Settings, Study


def maker(name: str) -> Callable[[Settings, Rates], Study]:
    """What makes the study of this name."""
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast(Callable[[Settings, Rates], Study], module.study)
