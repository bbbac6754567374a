"""One run of any kind, and where runs happen: here, or on a Ray cluster."""

import importlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from rbnorm_lab.checkpoints import save_model
from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.domains.images import DomainImages
from rbnorm_lab.domains.run import Weights, facts_of, own_parts
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.models import needs_rgb
from rbnorm_lab.processes import choose_threads, device_name
from rbnorm_lab.records import Failure, Record
from rbnorm_lab.train import train_run

Result = Record | Failure
LOCAL_RAY = "local"
_OF_DATA: Final = ("limit", "test_limit", "image_size", "held_out")


@dataclass(frozen=True)
class Sources:
    """Where a run finds what its config names; no record depends on the places.

    Attributes:
        root: Folder of the files of data sets.
        images: The images of several domains, on the device where they are trained on.
        weights: Weights of a pretrained network.
    """

    root: Path | None = None
    images: DomainImages | None = None
    weights: Weights | None = None


def data_of(config: RunConfig, root: Path | None) -> ImageData:
    """The data of a run, which runs of the same data share.

    Raises:
        UsageError: The data is missing or broken.
    """
    rgb = needs_rgb(config.model)
    values = {name: getattr(config, name) for name in _OF_DATA}
    key = (config.data, root, rgb, *values.values())
    if key not in _loaded:
        _loaded[key] = load_data(config.data, root, rgb=rgb, **values)
    return _loaded[key]


_loaded: dict[tuple[Any, ...], ImageData] = {}


def parts_of(config: RunConfig, sources: Sources) -> tuple[ImageData, dict[str, Any]]:
    """The data of a run, and what its training has in place of what others have."""
    if config.target is None:
        data = data_of(config, sources.root)
        choose_threads(data)
        return data, {}
    assert sources.images is not None
    assert sources.weights is not None
    data = sources.images.without(config.target)
    return data, own_parts(config, sources.images, sources.weights)


def attempt(
    config: RunConfig,
    sources: Sources,
    keep: Path | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Result:
    """One run, or the error it raised.

    Args:
        config: The run.
        sources: Where it finds what it needs.
        keep: File of safetensors to keep the trained model in.
        on_step: Called after every optimiser step.
    """
    try:
        data, own = parts_of(config, sources)

        def trained(model: nn.Module) -> None:
            if keep:
                save_model(model, config, data, keep)

        record = train_run(config, data, on_step, trained, **own)
    except Exception as error:  # whatever it is, the other runs can go on
        return Failure.of(config, error)
    if not (sources.images and sources.weights):
        return record
    device = device_name(sources.images.images.device)
    return replace(record, device=device, facts=facts_of(sources.images, sources.weights))


class Here:
    """Runs in this process, one after the other.

    Args:
        sources: Where they find what they need.

    Attributes:
        slots: How many can be made side by side.
        on_step: Called after every optimiser step of a run.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources, self.slots = sources, 1
        self.on_step: Callable[[], None] = lambda: None

    def submit(self, config: RunConfig, keep: Path | None = None) -> "Future[Result]":
        """Make a run."""
        done: Future[Result] = Future()
        done.set_result(attempt(config, self.sources, keep, self.on_step))
        return done


class Ray(Here):
    """Runs side by side on a Ray cluster, each with one CPU, or one GPU where there are any.

    Files of data sets are read where a run happens.

    Args:
        sources: Where they find what they need.
        address: ``auto`` for the cluster this machine belongs to, the address of another, or
            ``local`` for one that lasts as long as this command.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, sources: Sources, address: str) -> None:
        super().__init__(sources)
        try:
            ray: Any = importlib.import_module("ray")  # an extra
        except ImportError as error:
            raise UsageError("--ray needs Ray: pip install ray") from error
        where = None if address == LOCAL_RAY else address
        try:
            ray.init(where, log_to_driver=False, include_dashboard=False if where is None else None)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"--ray {address}: no cluster answers ({first_line(error)})"
            ) from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.slots = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.task: Any = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(attempt)

    def submit(self, config: RunConfig, keep: Path | None = None) -> "Future[Result]":
        """Make a run on the cluster."""
        future: Future[Result] = self.task.remote(config, self.sources, keep).future()
        return future
