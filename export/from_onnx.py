"""An ONNX file of any exporter becomes a `Source`: proved against itself as it was given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime import Bundle, PreprocessSpec
from shipnet.runtime.errors import DataError, UsageError
from shipnet.runtime.machine import available_cores
from shipnet.runtime.manifest import Normalization
from shipnet.runtime.signing import Signer

from .build import export_source, refuse_strangers
from .config import ExportConfig
from .foreign import Network, OnNote, Told, default_out, source_of
from .foreign_config import ForeignConfig
from .foreign_preprocess import choose_preprocess
from .onnx_adopt import Ending, adopt, ending, with_logits
from .onnx_file import OnnxError
from .onnx_reader import ForeignGraph, read_graph
from .parity import Images, Logits
from .source import OnProgress, Source

_TRIED: Final = (1, 2, 3)  # batch sizes
_SAME: Final = 1e-3  # of the largest logit: rounding stays far below
_ERRORS_ONLY: Final = 3
_TINY: Final = float(np.finfo(np.float32).tiny)


def export_onnx(
    path: str | os.PathLike[str],
    foreign: ForeignConfig,
    *,
    config: ExportConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    on_note: OnNote | None = None,
    on_progress: OnProgress | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Turns an ONNX file of any exporter into a sealed bundle, with the proofs of `export`.

    The validated network is the file as it is, run by onnxruntime without graph optimisations on float input that
    numpy normalised; what ships is the same graph behind a prefix that takes uint8 images.

    Args:
        path: one input of images, float32 or uint8, NCHW or NHWC, with a dynamic batch axis; one output of float32
            logits. A softmax that is the last operator is taken off, and that is told.
        foreign: labels, validation images and preprocessing.
        config: options; its `data`, `data_root` and `interop` have no meaning here.
        out: where the bundle will stand; None: `artifacts/NAME/bundle`, NAME as in `config`, or the file's own.
        on_note: called with what was found or chosen, a sentence each; None: they are logged.
        on_progress: as in `export`.
        sign_key: as in `export`.

    Raises:
        OnnxError: the file cannot be read, or is no classifier that can be proved and shipped; the message says how to
            export it instead.
        DataError: labels or images do not go with the network.
        UsageError: options that contradict each other or the graph.
        ParityError, BundleError, OutputError: as `export`.

    Example:
        >>> from shipnet.export import ForeignConfig, export_onnx, read_labels
        >>> foreign = ForeignConfig(labels=read_labels("labels.txt"), val="photos/val")
        >>> bundle = export_onnx("mine.onnx", foreign)
    """
    if foreign.arch is not None:
        raise UsageError(f"arch is {foreign.arch!r}, but an ONNX graph is its own architecture: leave it out")
    options, told, file = config or ExportConfig(), Told.of(on_note, on_progress), Path(path)
    name = options.name or file.stem
    target = Path(out) if out is not None else default_out(name)
    refuse_strangers(target)
    signer = Signer.load(sign_key) if sign_key is not None else None
    source = _source(file, foreign, name=name, told=told)
    return export_source(source, options, out=target, on_progress=told.progress, signer=signer)


def _source(path: Path, foreign: ForeignConfig, *, name: str, told: Told) -> Source:
    found = read_graph(path, foreign)
    end = ending(found)
    spec, normalization, sentence = choose_preprocess(foreign, found.shape)
    told.note(f"{path.name}: takes {'uint8' if found.uint8 else 'float32'} {found.layout}; {sentence}")
    if end.dropped:
        told.note(
            f"{path.name}: ends in {end.dropped}, which is taken off: a bundle gives logits, and scores by its own"
        )
    given = _Given(found, end, normalization)
    given.try_out(spec, len(foreign.labels))

    def adopted(images: Images, metadata: Mapping[str, str]) -> bytes:
        del images  # a graph needs no tracing
        classes = len(foreign.labels)
        return adopt(found, end, spec=spec, normalization=normalization, classes=classes, metadata=metadata)

    network = Network(
        kind="onnx",
        where=path.name,
        sha256=found.sha256,
        arch="onnx",
        parameters=found.parameters,
        spec=spec,
        normalization=normalization,
        reference=given,
        network=None,
        to_onnx=adopted,
        weights=None,
    )
    return source_of(network, foreign, name=name, told=told)


class _Given:
    """The graph as it was given, from uint8 (N, H, W, C) to float32 logits (N, K), on the CPU."""

    def __init__(self, found: ForeignGraph, end: Ending, normalization: Normalization | None) -> None:
        self._found, self._end, self._normalization = found, end, normalization
        self._session = _open(found, with_logits(found, end))

    def __call__(self, images: Images) -> Logits:
        """Runs a batch.

        Raises:
            DataError: logits that are not finite, or that decide otherwise than the softmax behind them.
            OnnxError: the graph cannot run on it.
        """
        found = self._run(images)
        logits: Logits = found[-1]
        if not np.isfinite(logits).all():
            raise DataError(
                f"{self._found.path.name}: gives NaN or infinite logits on validation images: "
                "are --mean and --std those that it was validated with?"
            )
        if self._end.dropped and logits.ndim == 2:
            chosen = np.take_along_axis(found[0], logits.argmax(1)[:, None], axis=1)[:, 0]
            if (chosen < found[0].max(1)).any():
                raise OnnxError(
                    f"{self._found.path.name}: its {self._end.dropped} decides otherwise than the logits before it: "
                    "export the network without it"
                )
        return logits

    def try_out(self, spec: PreprocessSpec, classes: int) -> None:
        """Runs a few drawn images at several batch sizes.

        Raises:
            OnnxError: the graph cannot take them, gives no logits of that many classes, or an image other logits
                the second time or beside others.
        """
        shape = (max(_TRIED), spec.height, spec.width, spec.channels)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        name = self._found.path.name
        rows = []
        for size in _TRIED:
            logits = self._run(images[:size])[-1]
            if logits.ndim != 2 or len(logits) != size:
                raise OnnxError(
                    f"{name}: {size} image(s) of {spec.height} x {spec.width} give an output of shape {logits.shape}, "
                    f"expected ({size}, {classes}): export it with one row of logits for each image"
                )
            _refuse_other_classes(logits.shape[1], classes, name)
            rows.append(logits[0])
        again = self._run(images)[-1]
        if not np.array_equal(logits, again, equal_nan=True):
            raise OnnxError(
                f"{name}: gives the same images other logits the second time: export it for inference"
            )
        if max(np.abs(row - rows[0]).max() for row in rows) > _SAME * np.abs(rows[0]).max():
            raise OnnxError(
                f"{name}: gives an image other logits alone than beside others: export it for inference, such as after "
                "model.eval()"
            )
        _refuse_probabilities(logits, name)

    def _run(self, images: Images) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self._session.run(None, {self._found.input: self._feed(images)})
        except Exception as error:  # the library's errors share no base class
            reason = str(error).strip().partition("\n")[0]
            raise OnnxError(
                f"{self._found.path.name}: cannot run on {len(images)} images of "
                f"{images.shape[1]} x {images.shape[2]}: {reason}: "
                "export it with a dynamic batch axis, or give the --image-size that it takes"
            ) from error
        return found

    def _feed(self, images: Images) -> NDArray[Any]:
        """What the graph takes: as any user of it would make it from pixels."""
        pixels: NDArray[Any] = images
        if self._normalization is not None:
            mean, std = (np.array(values) for values in (self._normalization.mean, self._normalization.std))
            pixels = ((images / 255.0 - mean) / std).astype(np.float32)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if self._found.layout == "NCHW" else pixels)


def _refuse_other_classes(outputs: int, classes: int, name: str) -> None:
    if outputs == 1:
        raise OnnxError(
            f"{name}: gives one number for each image, expected logits of {classes} classes: a network that tells two "
            "classes apart needs two outputs, too"
        )
    if outputs != classes:
        raise OnnxError(
            f"{name}: has {outputs} outputs, but there are {classes} labels: give a label for each of the {outputs} "
            "outputs, in their order"
        )


def _refuse_probabilities(outputs: Logits, name: str) -> None:
    """A softmax that is spelled out, or hidden in other operators, shows in its numbers."""
    sums = outputs.sum(1, dtype=np.float64)
    if outputs.min() >= 0 and np.abs(sums - 1).max() < 1e-3 and np.abs(outputs).max() > _TINY:
        raise OnnxError(
            f"{name}: its outputs are probabilities (none below 0, each image's sum 1), and a bundle's scores would be "
            "a softmax of them once more: export the network without its last layer's softmax"
        )


def _open(found: ForeignGraph, model: bytes) -> Any:
    """A session that runs the graph operator by operator."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = available_cores().usable
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise OnnxError(
            f"{found.path}: onnxruntime {ort.__version__} cannot open it: {reason}: export it again"
        ) from error
