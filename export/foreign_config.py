"""What an export of a network that was not trained here needs to be told. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from shipnet.runtime.errors import DataError, UsageError
from shipnet.runtime.preprocess import Interpolation
from shipnet.train.config import ARCHITECTURES, check_name, check_number, did_you_mean

RESIZES: Final = ("fit", "shorter_side_crop")
INTERPOLATIONS: Final = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
LAYOUTS: Final = ("NCHW", "NHWC")
# A graph that takes 0..255 is a mean of 0 and a std of 1/255; no network wants a narrower or wider scale than these.
LEAST_STD: Final = 1e-4
MOST_STD: Final = 10.0
MOST_MEAN: Final = 10.0
_MOST_LEVEL: Final = 255  # of a pixel, the other unit that means are stated in


class ForeignConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A network of one's own: what its outputs mean, how its pixels are made, what it is proved on.

    None in a field of the preprocessing takes torchvision's for weights that are torchvision's own, and ImageNet's
    convention for others; what was taken is told, and stands in the bundle.

    Attributes:
        labels: the classes, in the order of the network's outputs; `read_labels` reads them from a file.
        arch: of weights, one of `shipnet.train.config.ARCHITECTURES`; None for an ONNX graph, which is its own.
        val: folder of validation images, with a sub-folder for each class, named as its label.
        calibration: a folder like it, for ranges of int8 activations; None: the half of `val` that may select.
        strict: whether a damaged image stops; otherwise it is named, left out and counted.
        image_size: side of the network's square input in pixels; None: of the graph, or as said above.
        resize, resize_size, interpolation: as in `PreprocessSpec`.
        mean, std: per channel in units of [0, 1]; one value stands for all channels. Not with a graph that takes uint8.
        channels: 1 for grey, 3 for RGB; None: the network's.
        layout: of a graph's input, where its shape leaves that open.
        accept_accuracy: whether a network is taken that does no better than guessing, or that would do much
            better with the labels in another order.
    """

    labels: tuple[str, ...]
    val: str
    arch: str | None = None
    calibration: str | None = None
    strict: bool = False
    image_size: int | None = None
    resize: Literal["fit", "shorter_side_crop"] | None = None
    resize_size: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: Literal[1, 3] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    accept_accuracy: bool = False

    def __post_init__(self) -> None:
        for field in ("labels", "mean", "std"):
            if not isinstance(value := getattr(self, field), tuple | None):
                raise UsageError(f"{field} is {value!r}; expected a tuple")
        check_labels(self.labels, where="labels")
        if self.arch not in (None, *ARCHITECTURES):
            raise UsageError(
                f"arch is {self.arch!r}{did_you_mean(str(self.arch), ARCHITECTURES)}; expected one of: "
                f"{', '.join(ARCHITECTURES)}; a network of another architecture comes as an ONNX file"
            )
        check_number("image_size", self.image_size, low=8, high=4096, whole=True)
        check_number("resize_size", self.resize_size, low=8, high=65_535, whole=True)
        for field, names in (("resize", RESIZES), ("interpolation", INTERPOLATIONS), ("layout", LAYOUTS)):
            if (value := getattr(self, field)) is not None:
                check_name(field, value, names)
        if self.channels not in (None, 1, 3):
            raise UsageError(f"channels is {self.channels!r}; expected 1 for grey or 3 for RGB")
        if (self.mean is None) != (self.std is None):
            raise UsageError(
                "mean and std go together: give both, or neither to take the default that is told"
            )
        _check_statistics("mean", self.mean, low=-MOST_MEAN, high=MOST_MEAN)
        _check_statistics("std", self.std, low=LEAST_STD, high=MOST_STD)


def _check_statistics(field: str, values: tuple[float, ...] | None, *, low: float, high: float) -> None:
    """One number, or one per channel, in the unit that is meant."""
    for value in values or ():
        if isinstance(value, int | float) and high < value <= _MOST_LEVEL:
            raise UsageError(
                f"{field} is {value:g}; expected {low:g} to {high:g}, in units of [0, 1]: "
                f"divide by 255, as in {value:g}/255"
            )
        check_number(field, value, low=low, high=high)
    if values is not None and len(values) not in (1, 3):
        raise UsageError(f"{field} has {len(values)} values; expected one, or one per channel")


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The classes in the order of a network's outputs, from a text file, one a line, or a JSON list.

    Raises:
        DataError: no such file, not UTF-8, an empty label or one that stands twice, or other JSON.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror or error}; expected the labels, one a line, or a JSON list"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text ({error.reason}): save the labels as UTF-8") from error
    if file.suffix.lower() == ".json":
        return check_labels(_json_labels(text, file), where=str(file))
    lines = text.rstrip().splitlines()
    return check_labels(tuple(line.strip() for line in lines), where=str(file))


def check_labels(labels: tuple[str, ...], *, where: str) -> tuple[str, ...]:
    """Two labels or more, none empty, none twice.

    Raises:
        DataError: otherwise, naming the place.
    """
    if len(labels) < 2:
        raise DataError(
            f"{where}: {len(labels)} label(s); expected two or more, one for each output of the network"
        )
    for number, label in enumerate(labels, start=1):
        if not label.strip() or not label.isprintable():
            what = "is empty" if not label.strip() else f"({label!r}) cannot be printed"
            raise DataError(f"{where}: label {number} {what}: every output of the network needs a name")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        places = [str(number) for number, label in enumerate(labels, start=1) if label == twice[0]]
        more = f", and {len(twice) - 1} more stand twice" if len(twice) > 1 else ""
        raise DataError(
            f"{where}: {twice[0]!r} stands as label {' and '.join(places)}{more}: a label names one output only"
        )
    return labels


def _json_labels(text: str, file: Path) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error}): expected a list of labels") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        kind = "an object" if isinstance(value, dict) else "no list of strings"
        raise DataError(
            f'{file}: holds {kind}; expected a list in the order of the network\'s outputs, such as ["cat", "dog"]'
        )
    return tuple(value)
