"""The engine that users call."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shipnet.runtime import Bundle, BundleError, Classifier, DeviceError, Failure, ImageError, UsageError
from shipnet.runtime.classifier import softmax
from shipnet.runtime.plan import ExecutionPlan, resolve


@pytest.fixture(scope="module")
def classifier(digits_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(digits_bundle, device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(digit_files: Path) -> list[Path]:
    return sorted(digit_files.rglob("*.png"))


def test_every_kind_of_source_gives_the_same(classifier: Classifier, files: list[Path]) -> None:
    path = files[0]
    with Image.open(path) as image:
        array = np.asarray(image)
        predictions = [
            classifier(path),
            classifier(str(path)),
            classifier(path.read_bytes()),
            classifier(image),
            classifier(array),
            classifier(array[:, :, np.newaxis]),
        ]
    assert {(p.label, p.score, p.top) for p in predictions} == {
        (predictions[0].label, predictions[0].score, predictions[0].top)
    }
    assert predictions[0].source == path


def test_it_classifies_digits(classifier: Classifier, files: list[Path]) -> None:
    found = [prediction.label for prediction in classifier.predict(files)]
    right = sum(label == path.parent.name for label, path in zip(found, files, strict=True))
    assert right >= 0.8 * len(files)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32, 100])
def test_batches_change_nothing(classifier: Classifier, files: list[Path], batch_size: int) -> None:
    alone = [classifier(path) for path in files]
    together = classifier.predict(files, batch_size=batch_size)
    assert [p.source for p in together] == files
    assert [p.label for p in together] == [p.label for p in alone]
    assert np.allclose([p.score for p in together], [p.score for p in alone], atol=1e-6)


def test_logits_have_the_stated_form(classifier: Classifier, files: list[Path]) -> None:
    images = np.stack([classifier.preprocess(path) for path in files[:3]])
    logits = classifier.logits(images)
    assert logits.shape == (3, 10)
    assert logits.dtype == np.float32
    assert classifier.logits(images[:0]).shape == (0, 10)
    assert np.array_equal(classifier.logits(images[:, ::-1, ::-1][:, ::-1, ::-1]), logits)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 1), np.float32),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 9, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(classifier: Classifier, images: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ImageError, match=r"expected a uint8 array \(N, 8, 8, 1\), found (uint8|float32) \("):
        classifier.logits(images)


def test_top_k_is_ordered_and_sums_to_one(classifier: Classifier, files: list[Path]) -> None:
    (prediction,) = classifier.predict(files[:1], top_k=10)
    scores = [score for _, score in prediction.top]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0)
    assert (prediction.label, prediction.score) == prediction.top[0]
    for top_k in (0, 11):
        with pytest.raises(UsageError, match=f"top_k is {top_k}, expected 1 to 10"):
            classifier.predict(files[:1], top_k=top_k)
    with pytest.raises(UsageError, match="batch_size is 0"):
        classifier.predict(files[:1], batch_size=0)


def test_a_stream_reads_no_further_than_two_batches(classifier: Classifier, files: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield files[taken % len(files)]

    stream = classifier.stream(endless(), batch_size=4)
    for _ in range(9):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert taken <= 9 + 2 * 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shipnet-decode")]


def test_an_unreadable_image_stands_in_its_place(
    classifier: Classifier, files: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(files[0].read_bytes()[:60])
    mixed = [files[0], damaged, files[1], tmp_path / "missing.png"]
    results = list(classifier.stream(mixed, errors="yield", batch_size=2))
    assert [isinstance(result, Failure) for result in results] == [False, True, False, True]
    assert [result.source for result in results] == mixed
    assert results[0] == classifier(files[0])
    with pytest.raises(ImageError, match=r"damaged\.png"):
        classifier.predict(mixed)


def test_threads_share_one_classifier(classifier: Classifier, files: list[Path]) -> None:
    expected = [classifier(path).top for path in files]
    found: list[list[object]] = [[] for _ in range(4)]

    def work(slot: int) -> None:
        found[slot] = [classifier(path).top for path in files]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_refused(classifier: Classifier, files: list[Path]) -> None:
    child = os.fork()
    if child == 0:
        try:
            classifier(files[0])
        except DeviceError as error:
            os._exit(0 if "do not survive a fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_classifier_says_so(digits_bundle: Path) -> None:
    loaded = Classifier.load(digits_bundle, device="cpu")
    loaded.close()
    loaded.close()
    with pytest.raises(DeviceError, match="this classifier is closed"):
        loaded.logits(np.zeros((1, 8, 8, 1), np.uint8))


def test_the_plan_says_what_runs(classifier: Classifier, digits_bundle: Path) -> None:
    plan = classifier.plan
    assert isinstance(plan, ExecutionPlan)
    assert plan.identity == Bundle.open(digits_bundle).identity
    assert (plan.precision, plan.device, plan.provider) == ("fp32", "cpu", "CPUExecutionProvider")
    assert plan.device_reason == "asked for"
    assert {"numpy", "pillow"} <= set(plan.versions)
    info = classifier.describe()
    assert info.provider == plan.provider
    assert set(info.nodes) <= {plan.provider}


def test_threads_are_obeyed_and_change_nothing(digits_bundle: Path, files: list[Path]) -> None:
    results = []
    for threads in (1, 2):
        with Classifier.load(digits_bundle, device="cpu", threads=threads) as loaded:
            assert (loaded.plan.intra_op_threads, loaded.plan.threads_reason) == (threads, "asked for")
            results.append([loaded(path).top for path in files[:10]])
    assert results[0] == results[1]


def test_what_cannot_run_says_why(digits_bundle: Path) -> None:
    with pytest.raises(UsageError, match="device 'tpu' is unknown: choose one of auto, cpu, cuda"):
        Classifier.load(digits_bundle, device="tpu")
    with pytest.raises(BundleError, match="no variant of precision 'fp8' in this bundle; it has fp32"):
        Classifier.load(digits_bundle, precision="fp8")
    for wrong in ({"threads": 0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="expected at least 1"):
            Classifier.load(digits_bundle, **wrong)  # type: ignore[arg-type]


def test_cuda_is_strict(digits_bundle: Path) -> None:
    """Without CUDA it raises with the fix; with CUDA everything runs there."""
    bundle = Bundle.open(digits_bundle)
    try:
        plan, backend = resolve(bundle, device="cuda")
    except DeviceError as error:
        assert "shipnet[gpu]" in str(error) or "shipnet doctor" in str(error)
        automatic, backend = resolve(bundle)
        assert automatic.device == "cpu"
        assert automatic.device_reason.startswith("auto: ")
    else:
        assert plan.provider == "CUDAExecutionProvider"
        assert set(backend.describe().nodes) == {"CUDAExecutionProvider"}


def test_softmax_is_stable_and_takes_a_temperature() -> None:
    logits = np.array([[1000.0, 1000.0], [0.0, np.log(3)]], np.float32)
    assert softmax(logits) == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))
    assert softmax(logits, 0.5)[1] == pytest.approx(np.array([0.1, 0.9]))
