"""Parameters without values that know which ones they start with.

A library that makes a model on the meta device gives it memory later, and fills what no checkpoint
has by its own rules, which do not know the calibration. It takes ``torch.empty_like`` of the
parameter; ours answers with its initial value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import SupportsIndex

import torch
from torch import Tensor
from torch.nn.parameter import Parameter


class _Deferred(Parameter):
    """A parameter on the meta device."""

    value: float

    def __new__(  # type: ignore[misc]
        cls, data: Tensor, requires_grad: bool = True, value: float = 0.0
    ) -> Parameter:
        """An ordinary parameter where a library calls the type of one on a tensor with values."""
        return with_initial_value(Parameter(data.detach(), requires_grad), value)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Tensor],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func is not torch.empty_like or not isinstance(args[0], _Deferred):
                return result
            if result.is_meta:
                return Parameter(result, args[0].requires_grad)
            return result.fill_(args[0].value)

    __deepcopy__ = None  # type: ignore[assignment] # copies are made as pickles are

    def __reduce_ex__(
        self, protocol: SupportsIndex
    ) -> tuple[Callable[..., Parameter], tuple[Parameter, float]]:
        plain = Parameter(self.data, self.requires_grad)
        return with_initial_value, (plain, self.value)


def with_initial_value(parameter: Parameter, value: float) -> Parameter:
    """The parameter, or where it has no memory one that will start with this value."""
    if not parameter.is_meta or type(parameter) is not Parameter:
        return parameter
    deferred = parameter.data.as_subclass(_Deferred)
    deferred.requires_grad_(parameter.requires_grad)
    deferred.value = value
    return deferred
