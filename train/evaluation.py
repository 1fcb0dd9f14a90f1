"""How good a trained network is, measured once, when training is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import nn

from shipnet.runtime.accuracy import accuracy
from shipnet.runtime.calibration import Calibration, calibration
from shipnet.runtime.classifier import softmax
from shipnet.runtime.confusion import ClassResult, Confusion, class_results, confusions
from shipnet.runtime.preprocess import PreprocessSpec
from shipnet.runtime.proofs import Accuracy

from .feeds import Batch
from .images import Dataset, ImageSet, pixels
from .splits import HALVES_SEED, Indices, split_halves
from .temperature import fit_temperature, nll

TOP_LOSSES: Final = 16
_CHUNK: Final = 256  # images


class TopLoss(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A validation image that the network finds least likely to be what it is.

    Attributes:
        index: its place among the validation images.
        name: as in `ImageSet.names`.
        truth: its class.
        label: the class it was given.
        score: of that label, 0 to 1, under the run's temperature.
        loss: negative log-likelihood of the truth in nats, under the run's temperature.
    """

    index: int
    name: str
    truth: str
    label: str
    score: float
    loss: float


class RunEvaluation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run measured of its final weights, in fp32.

    The temperature is fitted on the selection half of the validation images, and what it does to the
    scores is measured on the other half, the evidence. Nothing is chosen on test images.

    Attributes:
        split_seed: of the two halves.
        accuracy: on all validation images, or on the evidence half where the other chose an epoch.
        evidence: on the evidence half.
        test: on the test images, looked at once; None where the data has none.
        classes: in the order of the labels, on the same images as `accuracy`, like the next two.
        confusion: by true class, then by label.
        top_losses: the highest first.
        temperature: what scores are divided by before the softmax.
        uncalibrated, calibrated: the evidence half's scores without the temperature, and with it.
    """

    split_seed: int
    accuracy: Accuracy
    evidence: Accuracy
    test: Accuracy | None
    classes: tuple[ClassResult, ...]
    confusion: tuple[Confusion, ...]
    top_losses: tuple[TopLoss, ...]
    temperature: float
    uncalibrated: Calibration
    calibrated: Calibration


def evaluate_run(
    model: nn.Module, dataset: Dataset, *, batches: Iterable[Batch], chooses: bool
) -> RunEvaluation:
    """Measures a trained network on the validation images, and on test images where there are some.

    Args:
        model: uint8 (N, H, W, C) -> logits (N, K), on the device that it runs on.
        dataset: what it was trained on.
        batches: all validation images, in order, on that device.
        chooses: whether training chose something on the selection half, which then measures nothing.

    Raises:
        ImageError: a file that is no image.
    """
    truths = dataset.valid.labels
    logits = predict(model, batches)
    given = logits.argmax(axis=1)
    selection, evidence = split_halves(truths, HALVES_SEED)
    measured = evidence if chooses else np.arange(len(truths))
    temperature = fit_temperature(logits[selection], truths[selection])
    pairs = Counter(
        (dataset.labels[truth], dataset.labels[label])
        for truth, label in zip(truths[measured], given[measured], strict=True)
    )
    return RunEvaluation(
        split_seed=HALVES_SEED,
        accuracy=_accuracy(given[measured], truths[measured]),
        evidence=_accuracy(given[evidence], truths[evidence]),
        test=_test_accuracy(model, dataset),
        classes=tuple(class_results(dataset.labels, pairs)),
        confusion=confusions(dataset.labels, pairs),
        top_losses=_top_losses(logits[measured], measured, dataset=dataset, temperature=temperature),
        temperature=temperature,
        uncalibrated=calibrate(logits[evidence], truths[evidence]),
        calibrated=calibrate(logits[evidence], truths[evidence], temperature),
    )


def predict(model: nn.Module, batches: Iterable[Batch]) -> NDArray[np.float32]:
    """The logits of every image, in order, float32 (N, K); the model in evaluation mode, without autocast."""
    model.eval()
    with torch.inference_mode():
        return np.concatenate([model(images).float().cpu().numpy() for images, _ in batches])


def calibrate(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0
) -> Calibration:
    """Holds the scores of logits (N, K) under a temperature against labels (N,)."""
    return calibration(softmax(logits, temperature).max(axis=1), logits.argmax(axis=1) == labels)


def _accuracy(given: NDArray[np.int64], labels: NDArray[np.int64]) -> Accuracy:
    return accuracy(int((given == labels).sum()), len(labels))


def _test_accuracy(model: nn.Module, dataset: Dataset) -> Accuracy | None:
    if dataset.test is None:
        return None
    device = next(model.parameters()).device
    batches = _batches(dataset.test, dataset.spec, device)
    return _accuracy(predict(model, batches).argmax(axis=1), dataset.test.labels)


def _batches(images: ImageSet, spec: PreprocessSpec, device: torch.device) -> Iterator[Batch]:
    """A set that no feed serves, a chunk at a time, so that photographs do not fill the memory."""
    labels = torch.from_numpy(images.labels)
    for start in range(0, len(images), _CHUNK):
        chosen = np.arange(start, min(start + _CHUNK, len(images)))
        batch = torch.from_numpy(pixels(images, spec, chosen))
        yield batch.to(device), labels[start : start + _CHUNK].to(device)


def _top_losses(
    logits: NDArray[np.float32], indices: Indices, *, dataset: Dataset, temperature: float
) -> tuple[TopLoss, ...]:
    truths = dataset.valid.labels[indices]
    losses = nll(logits, truths, temperature)
    worst = np.argsort(-losses, kind="stable")[:TOP_LOSSES]
    scores = softmax(logits[worst], temperature)
    return tuple(
        TopLoss(
            index=int(indices[place]),
            name=dataset.valid.names[indices[place]],
            truth=dataset.labels[truths[place]],
            label=dataset.labels[row.argmax()],
            score=float(row.max()),
            loss=float(losses[place]),
        )
        for place, row in zip(worst, scores, strict=True)
    )
