"""What an export is asked to do, as one frozen value."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

# Ten-thousandths of the largest logit: rounding of fp32 kernels stays a hundred times below, a wrong layer far above.
FP32_MAX_RELATIVE_DIFFERENCE: Final = 1e-4


class ExportConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of an export.

    Attributes:
        name: of the bundle; None takes the data set's.
        data, data_root: where the validation images lie now; None takes what the run trained on.
        max_relative_difference: the largest absolute logit difference over the logits' scale.
        max_flip_rate: the share of validation images whose top-1 label may change, 0 to 1.
        batch_sizes: at which logits are compared.
        interop: whether TorchScript, `.pt2` and safetensors are written too.
    """

    name: str | None = None
    data: str | None = None
    data_root: str | None = None
    max_relative_difference: Annotated[float, Meta(gt=0.0)] = FP32_MAX_RELATIVE_DIFFERENCE
    max_flip_rate: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    batch_sizes: tuple[Annotated[int, Meta(ge=1)], ...] = (1, 2, 3, 7, 64)
    interop: bool = True
