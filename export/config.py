"""What an export is asked to do, as one frozen value."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from shipnet.runtime.encoding import Fraction
from shipnet.runtime.errors import UsageError
from shipnet.runtime.proofs import Budget
from shipnet.train.config import check_name, check_number

# Beside fp32, which is always made.
PRECISIONS: Final = ("fp16", "int8-cpu", "int8-tensorrt")
# Of the logits' scale. fp32: rounding stays a hundred times below, a wrong layer far above. fp16 has 11 bits; int8
# is held by its decisions alone.
FP32_MAX_RELATIVE_DIFFERENCE: Final = 1e-4
DEFAULT_BUDGETS: Final = {
    "fp32": Budget(
        max_relative_difference=FP32_MAX_RELATIVE_DIFFERENCE, max_flip_rate=0.0, max_top1_drop=0.0
    ),
    "fp16": Budget(max_relative_difference=0.02, max_flip_rate=0.005, max_top1_drop=0.005),
    "int8-cpu": Budget(max_relative_difference=None, max_flip_rate=0.02, max_top1_drop=0.01),
    "int8-tensorrt": Budget(max_relative_difference=None, max_flip_rate=0.02, max_top1_drop=0.01),
}
# What `verify` allows on another machine, over the logits' scale; int8 rounds to other steps with other kernels.
REPLAY_TOLERANCE: Final = {"fp32": 1e-4, "fp16": 0.02, "int8-cpu": 0.05, "int8-tensorrt": 0.05}

# A share for one precision, such as ("int8-cpu", 0.01).
Limit = tuple[str, Fraction]


class ExportConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of an export.

    Attributes:
        name: of the bundle; None takes the data set's.
        data, data_root: where the validation images lie now; None takes what the run trained on.
        max_relative_difference: of fp32: the largest absolute logit difference over the logits' scale.
        max_flip_rate, max_top1_drop: for some precisions, what stands in for `DEFAULT_BUDGETS`.
        batch_sizes: at which logits are compared.
        interop: whether TorchScript, `.pt2` and safetensors are written too.
        variants: further precisions to make, of `PRECISIONS`.
        accept_uncertified: whether a variant is shipped, and marked so, that kept its budget on images too few
            to certify it.
        calibration_images: training images that set the ranges of an int8 variant.
        reduce_range: whether int8 weights have 7 bits, for CPUs without VNNI.
        probes: what lies in the evidence to be replayed: validation images, or drawn ones, which show
            nobody's data.
    """

    name: str | None = None
    data: str | None = None
    data_root: str | None = None
    max_relative_difference: Annotated[float, Meta(gt=0.0)] = FP32_MAX_RELATIVE_DIFFERENCE
    max_flip_rate: tuple[Limit, ...] = ()
    max_top1_drop: tuple[Limit, ...] = ()
    batch_sizes: tuple[Annotated[int, Meta(ge=1)], ...] = (1, 2, 3, 7, 64)
    interop: bool = True
    variants: tuple[str, ...] = ()
    accept_uncertified: bool = False
    calibration_images: int = 512
    reduce_range: bool = False
    probes: Literal["real", "synthetic"] = "real"

    def __post_init__(self) -> None:
        for precision in self.variants:
            check_name("variants", precision, PRECISIONS)
        if len(set(self.variants)) != len(self.variants):
            raise UsageError(f"variants: one stands twice: {', '.join(self.variants)}")
        check_number("calibration_images", self.calibration_images, low=1, high=100_000, whole=True)
        for name in ("max_flip_rate", "max_top1_drop"):
            for precision, limit in getattr(self, name):
                check_name(name, precision, tuple(DEFAULT_BUDGETS))
                check_number(name, limit, low=0.0, high=1.0)

    def budget(self, precision: str) -> Budget:
        """What a precision may differ from the validated network."""
        budget = DEFAULT_BUDGETS[precision]
        changes = {
            name: dict(getattr(self, name)).get(precision, getattr(budget, name))
            for name in ("max_flip_rate", "max_top1_drop")
        }
        if precision == "fp32":
            changes["max_relative_difference"] = self.max_relative_difference
        return msgspec.structs.replace(budget, **changes)
