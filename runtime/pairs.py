"""Two classifiers over the same files, side by side, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .classifier import Classifier, softmax
from .errors import DeviceError, ImageError

Pixels: TypeAlias = NDArray[np.uint8]


class Decision(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one side says of an image.

    Attributes:
        label: the most probable class; of equal ones the first.
        score: its probability, 0 to 1.
        margin: how far the score lies above the second class's, 0 to 1.
    """

    label: str
    score: float
    margin: float


Answer: TypeAlias = tuple[str, Decision | ImageError, Decision | ImageError]
_Decoded: TypeAlias = tuple[Pixels | ImageError, Pixels | ImageError]


def answers(a: Classifier, b: Classifier, files: Iterable[str]) -> Iterator[Answer]:
    """What both say of every file, in order, holding two batches of images at most.

    Each reads a file by its own bundle's spec; where the specs are equal it is decoded once.

    Raises:
        DeviceError: a network failed, or gave NaN or infinite logits.
    """
    size, same = a.plan.batch_size, a.bundle.manifest.preprocess == b.bundle.manifest.preprocess

    def decode(file: str) -> _Decoded:
        first = _pixels(a, file)
        return first, first if same else _pixels(b, file)

    rest = iter(files)
    waiting: deque[tuple[str, Future[_Decoded]]] = deque()
    pool = ThreadPoolExecutor(a.plan.decode_threads, thread_name_prefix="shipnet-decode")
    try:
        while True:
            waiting.extend(
                (file, pool.submit(decode, file)) for file in islice(rest, 2 * size - len(waiting))
            )
            if not waiting:
                return
            batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
            decoded = [future.result() for _, future in batch]
            decisions = (
                _decide(side, [pair[index] for pair in decoded]) for index, side in enumerate((a, b))
            )
            yield from zip((file for file, _ in batch), *decisions, strict=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pixels(side: Classifier, file: str) -> Pixels | ImageError:
    try:
        return side.preprocess(file)
    except ImageError as error:
        return error


def _decide(side: Classifier, batch: list[Pixels | ImageError]) -> list[Decision | ImageError]:
    """The decision on every image of a batch, and the error in place of one that could not be read."""
    images = [item for item in batch if not isinstance(item, ImageError)]
    decisions = iter(_decisions(side, np.stack(images)) if images else [])
    return [item if isinstance(item, ImageError) else next(decisions) for item in batch]


def _decisions(side: Classifier, images: Pixels) -> list[Decision]:
    logits = side.logits(images)
    if not np.isfinite(logits).all():
        raise DeviceError(
            f"{side.plan.bundle}: the network gave NaN or infinite logits on {side.plan.provider}: "
            "run  shipnet verify  on this bundle"
        )
    scores = softmax(logits, side.plan.temperature)
    highest = np.sort(scores, axis=1)[:, -2:]
    return [
        Decision(label=side.labels[index], score=float(second[1]), margin=float(second[1] - second[0]))
        for index, second in zip(logits.argmax(1), highest, strict=True)
    ]
