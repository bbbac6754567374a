"""A pass of a model over batches that leaves the model as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from rbnorm.models.originals import refuse_without_values

Forward = Callable[[nn.Module, Any], Any]
Listener = Callable[[_BatchNorm, Tensor], None]
_TARGETS = ("labels", "label", "target")


def normalisers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every BatchNorm of a model, RBN included, once under its first name.

    Raises:
        ValueError: There is none, or one that has no values yet.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise ValueError(
            "model must have a BatchNorm, SyncBatchNorm, timm norm-act or RBN layer, "
            f"got {type(model).__name__} without one"
        )
    for name, layer in layers.items():
        refuse_without_values(name, layer)
    return layers


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and the state of torch's random numbers on leaving."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = {id(b): (b, b.clone()) for _, own in buffers for b in own.values() if b is not None}
    states = [(put, get()) for get, put in _generators(model)]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for current, own in buffers:
            current.clear()
            current.update(own)
        with torch.no_grad():
            for buffer, value in values.values():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for put, state in states:
            put(state)


def _generators(model: nn.Module) -> list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]]:
    """How to get and set the state of the generators of the CPU and of the model's devices."""
    pairs: list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]] = [
        (torch.get_rng_state, torch.set_rng_state)
    ]
    for device in {p.device for p in (*model.parameters(), *model.buffers())}:
        if device.type in {"cpu", "meta"}:
            continue
        module: Any = torch.get_device_module(device)
        where = {} if device.type == "mps" else {"device": device}  # which has no other device
        get, put = module.get_rng_state, module.set_rng_state
        pairs.append((partial(get, **where), partial(put, **where)))
    return pairs


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a tensor, or on the first item of a sequence, moved to its device."""
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(inputs, Tensor):
        kind = "a mapping" if isinstance(inputs, Mapping) else type(inputs).__name__
        raise TypeError(
            f"a batch must be a tensor or (tensor, labels, ...), got {kind}; "
            "pass forward= to say how the model is run on it"
        )
    device = next((p.device for p in (*model.parameters(), *model.buffers())), inputs.device)
    return model(inputs.to(device, non_blocking=True))


def check_repeatable(name: str, batches: Iterable[Any]) -> None:
    """Refuse batches that can be gone through only once."""
    if hasattr(batches, "__next__"):
        raise ValueError(
            f"{name} must be something to iterate over many times, such as a list or a DataLoader, "
            f"got {type(batches).__name__}"
        )


def target_in(batch: Any) -> Any:
    """What belongs to the inputs: the second item of a sequence, or the labels of a mapping."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in _TARGETS if name in batch), None)
    return batch[1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The input of a normaliser among what a hook ``with_kwargs`` gets."""
    return args[0] if args else kwargs["input"]


def first_tensor(arguments: Any) -> Tensor | None:
    """The first floating-point tensor among arguments, else the first tensor."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return next((x for x in tensors if x.is_floating_point()), next(iter(tensors), None))


def run(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward,
    listeners: Mapping[str, Listener],
    on_output: Callable[[Any, Any], None] = lambda batch, output: None,
    on_input: Callable[[Tensor], None] = lambda x: None,
) -> int:
    """One pass without gradients, in the mode the model is in.

    Args:
        model: The model.
        batches: What to run it on.
        forward: Runs the model on one batch.
        listeners: By name of the layer, what is called with the layer and its input.
        on_output: Called with every batch and the model's output.
        on_input: Called with the :func:`first_tensor` of the model's arguments, before its hooks.

    Returns:
        The number of batches.

    Raises:
        ValueError: There was no batch.
        RuntimeError: The model, or a layer's statistics, raised.
    """
    last: str | None = None

    def hook(name: str, listen: Listener) -> Callable[..., None]:
        def before(layer: _BatchNorm, args: Any, kwargs: Any) -> None:
            nonlocal last
            listen(layer, input_of(args, kwargs).detach())
            last = name

        return before

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        x = first_tensor((args, kwargs))
        if x is not None:
            on_input(x)

    layers, count = normalisers(model), 0
    stance: Any = getattr(torch.compiler, "set_stance", nullcontext)  # torch 2.4 has none
    with ExitStack() as hooks, torch.no_grad(), stance("force_eager"):
        hooks.enter_context(model.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        for name, listen in listeners.items():
            before = hook(name, listen)
            hooks.enter_context(layers[name].register_forward_pre_hook(before, with_kwargs=True))
        for count, batch in enumerate(batches, start=1):
            last = None
            try:
                output = forward(model, batch)
            except Exception as error:
                raise _failure(error, count, last) from error
            on_output(batch, output)
    if not count:
        raise ValueError("batches must hold at least one batch, got none")
    return count


def _failure(error: Exception, batch: int, layer: str | None) -> RuntimeError:
    lines = str(error).strip().splitlines()
    said = lines[0].rstrip(".") if lines else type(error).__name__
    where = f"after layer {layer!r}" if layer else "before its first normaliser"
    return RuntimeError(f"the model failed on batch {batch}, {where} ({said})")
