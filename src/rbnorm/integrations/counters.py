"""Operation counts of RBN for thop and fvcore."""

from __future__ import annotations

from math import prod
from typing import Any

from rbnorm.integrations import layer_classes

__all__ = ["fvcore_handles", "thop_operations"]

# A value joins its instance's mean, is centred, multiplied and shifted; the rest is per instance.
_PER_VALUE = 4


def _count(layer: Any, inputs: Any, output: Any) -> None:
    layer.total_ops += _PER_VALUE * output.numel()


def thop_operations() -> dict[type, Any]:
    """The layers' counts, for ``thop.profile(model, inputs, custom_ops=...)``.

    thop counts parameters where it knows the layer: all of an RBN layer's are counted with this.
    """
    return dict.fromkeys(layer_classes(), _count)


def fvcore_handles() -> dict[str, Any]:
    """Counts of elementwise arithmetic, for ``FlopCountAnalysis(...).set_op_handle(**...)``.

    fvcore counts the operations of a trace and leaves these out, which are all that RBN consists
    of; with them, additions and products elsewhere in the model are counted too.
    """

    def per_value(operations: int, of_input: bool = False) -> Any:
        def count(inputs: list[Any], outputs: list[Any]) -> int:
            sizes: list[int] = (inputs if of_input else outputs)[0].type().sizes()
            return operations * prod(sizes)

        return count

    single = dict.fromkeys(("aten::add", "aten::sub", "aten::mul"), per_value(1))
    return {**single, "aten::addcmul": per_value(2), "aten::mean": per_value(1, of_input=True)}
