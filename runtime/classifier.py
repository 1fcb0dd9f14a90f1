"""The engine that users call: images in, labels and scores out, without PyTorch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from .backends import Backend, BackendInfo
from .bundle import Bundle
from .errors import DeviceError, ImageError, UsageError
from .plan import DEFAULT_BATCH_SIZE, ExecutionPlan, resolve
from .preprocess import ImageSource, preprocess


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an image shows.

    Attributes:
        source: the image, as it was given.
        label: the most probable class; of equal ones the first.
        score: its probability, softmax of the logits over the bundle's temperature, 0 to 1.
        top: the `top_k` most probable classes with their scores, best first.
    """

    source: ImageSource
    label: str
    score: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be read, in the place where its prediction would stand."""

    source: ImageSource
    error: ImageError


class Classifier:
    """A bundle that is ready to classify. Safe to share between threads, not across a fork.

    Example:
        >>> classifier = Classifier.load("artifacts/digits/bundle")
        >>> classifier("artifacts/digits/samples/7-0.png").label
        '7'
    """

    def __init__(self, bundle: Bundle, plan: ExecutionPlan, backend: Backend) -> None:
        self.bundle = bundle
        self.plan = plan
        self._backend: Backend | None = backend
        self._process = os.getpid()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        public_key: str | os.PathLike[str] | None = None,
    ) -> Classifier:
        """Opens a bundle, checks every file of it, and makes it ready to run.

        Args:
            path: the bundle's folder, or a zip of it that `pack` wrote.
            device: "cpu", "cuda" or "auto". What is asked for runs, or `DeviceError` says why not;
                "auto" takes CUDA where it opens; `plan.device_reason` says what it chose and why.
            precision: of the variant to run.
            threads: that one batch uses on the CPU; None measures and chooses.
            batch_size: images that `predict` and `stream` run at a time.
            public_key: a PEM file; the bundle must be signed by that key's owner. None: a signature is not checked.

        Raises:
            BundleError: no bundle, a changed one, or one without that precision.
            SignatureError: it is not signed by that key.
            DeviceError: the device cannot run it.
            UsageError: an unknown device, a number below one, or a key that cannot be read.
            MissingExtraError: onnxruntime is not installed, or model-signing for a key.
        """
        bundle = Bundle.open(path, public_key=public_key)
        plan, backend = resolve(
            bundle, device=device, precision=precision, threads=threads, batch_size=batch_size
        )
        return cls(bundle, plan, backend)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return self.bundle.manifest.labels

    def __call__(self, source: ImageSource) -> Prediction:
        """Classifies one image: a path, encoded bytes, a PIL image or a uint8 array (H, W[, 1 or 3]).

        Raises:
            ImageError: it cannot be read.
        """
        logits = self.logits(self.preprocess(source)[np.newaxis])
        return self._predictions([source], logits, 1)[0]

    def preprocess(self, source: ImageSource) -> NDArray[np.uint8]:
        """The pixels that the network sees of an image: uint8 (H, W, C).

        Raises:
            ImageError: it cannot be read.
        """
        return preprocess(source, self.bundle.manifest.preprocess)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the network once on a batch of preprocessed images.

        Args:
            images: uint8 (N, H, W, C), 0 to 255, of the size that the bundle states; N may be 0.

        Returns:
            float32 (N, num_classes), unnormalised, before the temperature.

        Raises:
            ImageError: another shape or dtype.
            DeviceError: the device failed, the classifier is closed, or the process was forked.
        """
        spec = self.bundle.manifest.input
        shape = (spec.height, spec.width, spec.channels)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != shape:
            found = (
                f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            )
            raise ImageError(
                f"logits: expected a uint8 array (N, {spec.height}, {spec.width}, {spec.channels}), found {found}: "
                "use classifier.preprocess(image), or predict(), which takes any image"
            )
        backend = self._live_backend()
        if len(images) == 0:
            return np.empty((0, len(self.labels)), dtype=np.float32)
        return backend.run(np.ascontiguousarray(images))

    def predict(
        self, sources: Iterable[ImageSource], *, top_k: int = 1, batch_size: int | None = None
    ) -> list[Prediction]:
        """Classifies images, in order.

        Args:
            sources: paths, encoded bytes, PIL images or uint8 arrays.
            top_k: how many classes `Prediction.top` holds.
            batch_size: images per run; None takes the plan's.

        Raises:
            ImageError: an image cannot be read (`stream(errors="yield")` goes on instead).
            UsageError: `top_k` or `batch_size` out of range.
        """
        return list(self.stream(sources, top_k=top_k, batch_size=batch_size))

    @overload
    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        top_k: int = 1,
        batch_size: int | None = None,
        errors: Literal["raise"] = "raise",
    ) -> Iterator[Prediction]: ...
    @overload
    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        top_k: int = 1,
        batch_size: int | None = None,
        errors: Literal["yield"],
    ) -> Iterator[Prediction | Failure]: ...
    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        top_k: int = 1,
        batch_size: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Prediction | Failure]:
        """Classifies images in order, holding two batches of them in memory at most.

        Args:
            sources: paths, encoded bytes, PIL images or uint8 arrays; may be endless.
            top_k: how many classes `Prediction.top` holds.
            batch_size: images per run; None takes the plan's.
            errors: "raise" stops at an image that cannot be read; "yield" gives a `Failure`
                in its place and goes on.

        Raises:
            ImageError: an image cannot be read, with `errors="raise"`.
            UsageError: an argument is out of range.
        """
        size = self.plan.batch_size if batch_size is None else batch_size
        if size < 1:
            raise UsageError(f"batch_size is {size}, expected at least 1")
        if not 1 <= top_k <= len(self.labels):
            raise UsageError(f"top_k is {top_k}, expected 1 to {len(self.labels)}, the number of labels")
        if errors not in ("raise", "yield"):
            raise UsageError(f"errors is {errors!r}, expected 'raise' or 'yield'")
        return self._stream(iter(sources), top_k, size, errors)

    def describe(self) -> BackendInfo:
        """What the network really runs on, read back from the library."""
        return self._live_backend().describe()

    def close(self) -> None:
        """Releases the session and its device memory."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _live_backend(self) -> Backend:
        if self._backend is None:
            raise DeviceError("this classifier is closed: load the bundle again")
        if os.getpid() != self._process:
            raise DeviceError(
                f"this classifier was loaded in process {self._process} and is used in {os.getpid()}: "
                "sessions do not survive a fork, load the bundle in each process"
            )
        return self._backend

    def _stream(
        self, sources: Iterator[ImageSource], top_k: int, size: int, errors: str
    ) -> Iterator[Prediction | Failure]:
        self._live_backend()
        pool = ThreadPoolExecutor(self.plan.decode_threads, thread_name_prefix="shipnet-decode")
        waiting: deque[tuple[ImageSource, Future[NDArray[np.uint8]]]] = deque()
        try:
            while True:
                for source in islice(sources, 2 * size - len(waiting)):
                    waiting.append((source, pool.submit(self.preprocess, source)))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield from self._run_batch(batch, top_k, errors)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run_batch(
        self, batch: list[tuple[ImageSource, Future[NDArray[np.uint8]]]], top_k: int, errors: str
    ) -> Iterator[Prediction | Failure]:
        readable: list[ImageSource] = []
        images: list[NDArray[np.uint8]] = []
        failures: list[Failure | None] = []
        for source, future in batch:
            try:
                images.append(future.result())
                readable.append(source)
                failures.append(None)
            except ImageError as error:
                if errors == "raise":
                    raise
                failures.append(Failure(source, error))
        predictions = iter(
            self._predictions(readable, self.logits(np.stack(images)), top_k) if images else ()
        )
        for failure in failures:
            yield next(predictions) if failure is None else failure

    def _predictions(
        self, sources: list[ImageSource], logits: NDArray[np.float32], top_k: int
    ) -> list[Prediction]:
        if not np.isfinite(logits).all():
            raise DeviceError(
                f"{self.plan.bundle}: the network gave NaN or infinite logits on {self.plan.provider}: "
                "run  shipnet verify  on this bundle"
            )
        scores = softmax(logits, self.plan.temperature)
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        predictions = []
        for source, row, best in zip(sources, scores, order, strict=True):
            top = tuple((self.labels[index], float(row[index])) for index in best)
            predictions.append(Prediction(source, top[0][0], top[0][1], top))
        return predictions


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of each row of logits, float64 (N, K), each row summing to 1.

    Source: the temperature is that of Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017, section 4.2; the largest logit is subtracted first so that exp cannot overflow.
    """
    scaled = logits.astype(np.float64) / temperature
    exponentials: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
