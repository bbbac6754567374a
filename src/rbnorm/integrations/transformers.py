"""Hugging Face transformers: models that are saved and loaded with their RBN layers."""

from __future__ import annotations

from typing import Any

from rbnorm.models.record import convert_as_recorded, record_layers

__all__ = ["RepresentativeBatchNormMixin"]


class RepresentativeBatchNormMixin:
    """The first base of a model class, so that ``from_pretrained`` builds RBN where it was saved.

    ::

        class Model(RepresentativeBatchNormMixin, ResNetForImageClassification):
            pass

        model = rbnorm.convert_batchnorm(Model.from_pretrained("microsoft/resnet-50"))
        ...
        model.save_pretrained("folder")  # the config has the record of the layers
        model = Model.from_pretrained("folder")

    A checkpoint whose config has no record makes a BatchNorm model.
    """

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        record = getattr(config, "rbnorm", None)
        if record is not None:
            convert_as_recorded(self, record)  # type: ignore[type-var]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in the other base, with the record of the layers in the config.

        Raises:
            ValueError: There is no RBN layer, or one has a callable option.
        """
        self.config.rbnorm = record_layers(self)  # type: ignore[arg-type]
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
