"""What an export starts from: a network, and the images that it is proved on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from shipnet.runtime import DataError, PreprocessSpec
from shipnet.runtime.manifest import Normalization, Provenance
from shipnet.runtime.plan import installed_versions
from shipnet.train import Dataset, ImageSet, Run, load_data, pixels, split_halves

from .config import ExportConfig
from .onnx_graph import to_onnx
from .parity import Chunk, Images
from .parity import Run as RunFunction
from .torch_formats import as_function

Indices = NDArray[np.int64]
_CHUNK: Final = 64
LIBRARIES: Final = (
    "shipnet",
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "pillow",
)
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A network that was validated, with everything an export needs to know of it.

    Attributes:
        name: of the bundle.
        labels: the classes, in the order of the logits.
        spec: how a file becomes the network's pixels.
        normalization: that runs inside the graph; None: the graph's own, unknown.
        valid: the validation images.
        selection: indices into `valid`: what may be chosen on.
        evidence: indices into `valid`, in a random order: what nothing was chosen on.
        calibration: images that ranges of activations may be measured on; they prove nothing.
        reference: the validated network: uint8 (N, H, W, C) to float32 logits (N, K), on the CPU.
        network: the same in PyTorch, in evaluation mode; None where it is a foreign graph.
        to_onnx: from example images, uint8 (N, H, W, C), and metadata, to a serialised fp32 ONNX model.
        weights: in safetensors form; None where there are none apart from the graph.
        temperature: of the fp32 scores.
        provenance: where it comes from.
    """

    name: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    normalization: Normalization | None
    valid: ImageSet
    selection: Indices
    evidence: Indices
    calibration: ImageSet
    reference: RunFunction
    network: nn.Module | None
    to_onnx: Callable[[Images, Mapping[str, str]], bytes]
    weights: bytes | None
    temperature: float
    provenance: Provenance

    def evidence_images(self, count: int) -> Images:
        """The first images of the evidence half in its random order: uint8 (N, H, W, C), N <= count."""
        return pixels(self.valid, self.spec, self.evidence[:count])

    def chunks(self, indices: Indices, on_progress: OnProgress, *, what: str) -> Iterator[Chunk]:
        """Validation images, a chunk at a time, so that memory stays bounded."""
        is_evidence = np.zeros(len(self.valid), dtype=bool)
        is_evidence[self.evidence] = True
        for first in range(0, len(indices), _CHUNK):
            chosen = indices[first : first + _CHUNK]
            on_progress(what, first, len(indices))
            yield Chunk(
                indices=chosen,
                images=pixels(self.valid, self.spec, chosen),
                labels=self.valid.labels[chosen],
                evidence=is_evidence[chosen],
            )
        on_progress(what, len(indices), len(indices))


def from_run(run: Run, config: ExportConfig, *, dataset: Dataset | None, on_progress: OnProgress) -> Source:
    """A training run as a source.

    Args:
        run: that was finished.
        config: says where its images lie now.
        dataset: what `load_data` gave for them, where the caller has it already.
        on_progress: called with what is done.

    Raises:
        DataError: the images are not those that the run was measured on, or too few to prove anything.
        RunError: the weights are missing, damaged, or another network's.
    """
    record = run.record
    on_progress("data", 0, 1)
    changes = {"data": config.data, "data_root": config.data_root}
    found = {name: value for name, value in changes.items() if value is not None}
    data = dataset or load_data(msgspec.structs.replace(record.config.data, **found))
    if data.fingerprint != record.data_fingerprint:
        raise DataError(
            f"{data.name}: is not the data that {run.path} was trained on (its fingerprint is "
            f"{data.fingerprint[:12]}, the run's {record.data_fingerprint[:12]}): "
            "give the same images with --data, or train again"
        )
    data = data.without(record.unreadable)
    selection, evidence = halves(data.valid, record.evaluation.split_seed, name=data.name)
    network = run.network().eval()
    on_progress("data", 1, 1)
    return Source(
        name=config.name or data.name,
        labels=data.labels,
        spec=record.preprocess,
        normalization=Normalization(mean=record.mean, std=record.std),
        valid=data.valid,
        selection=selection,
        evidence=evidence,
        calibration=data.train,
        reference=as_function(network),
        network=network,
        to_onnx=lambda images, metadata: to_onnx(network, images, metadata=metadata),
        weights=run.weights_path.read_bytes(),
        temperature=record.temperature,
        provenance=_provenance(run, data),
    )


def halves(valid: ImageSet, seed: int, *, name: str) -> tuple[Indices, Indices]:
    """Indices of the half that selects, sorted, and of the half that is evidence, shuffled.

    Raises:
        DataError: there are too few images to prove anything.
    """
    selection, evidence = split_halves(valid.labels, seed)
    if len(evidence) < 2:
        raise DataError(f"{name}: {len(valid)} validation images are too few to prove anything: add images")
    return selection, np.random.default_rng(seed).permutation(evidence)


def _provenance(run: Run, data: Dataset) -> Provenance:
    record = run.record
    recipe: dict[str, Any] = msgspec.to_builtins(record.config)
    recipe["data"] |= {"data": data.name, "data_root": None}  # never a local path
    recipe["weights"] = recipe["weights"] and Path(recipe["weights"]).name
    return Provenance(
        source="run",
        source_sha256=record.weights_sha256,
        arch=record.arch,
        parameters=record.parameters,
        data=data.name,
        data_fingerprint=record.data_fingerprint,
        train_images=len(data.train),
        validation_images=len(data.valid),
        unreadable_images=len(record.unreadable),
        doubts=(),
        recipe=recipe,
        seed=record.config.seed,
        split_seed=record.evaluation.split_seed,
        epochs=record.epochs,
        versions={**record.versions, **installed_versions(LIBRARIES)},
        git_commit=record.git_commit,
    )
