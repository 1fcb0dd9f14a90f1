"""From a run to a bundle: export every format, prove each on real images, seal what held."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from torch import nn

from shipnet.runtime import (
    Bundle,
    BundleError,
    Classifier,
    DataError,
    ParityError,
    PreprocessSpec,
)
from shipnet.runtime.bundle import MANIFEST
from shipnet.runtime.manifest import (
    FORMAT_VERSION,
    Budget,
    InputSpec,
    Interop,
    Manifest,
    Normalization,
    OutputSpec,
    Parity,
    Provenance,
    Variant,
    encode,
)
from shipnet.runtime.plan import installed_versions, resolve
from shipnet.runtime.staging import staged_folder, write_file
from shipnet.train import Dataset, Run, load_data, load_run, pixels, split_halves

from .assemble import list_files, seal
from .config import ExportConfig
from .model_card import model_card
from .onnx_graph import INPUT, OUTPUT, to_onnx, versions
from .parity import Chunk, Images, ParityReport, compare_batches, prove
from .parity import Run as RunFunction
from .torch_formats import as_function, open_pt2, open_torchscript, to_pt2, to_torchscript

FP32: Final = "model/fp32.onnx"
TORCHSCRIPT: Final = "interop/model.torchscript.pt"
PT2: Final = "interop/model.pt2"
WEIGHTS: Final = "interop/weights.safetensors"
EVIDENCE: Final = "evidence/parity.json"
REPORT: Final = "parity-report.json"
_CHUNK: Final = 64
_LIBRARIES: Final = (
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


@dataclass(frozen=True, slots=True)
class _Job:
    """What an export works with: the run, its data, and the network that all is held against."""

    run: Run
    config: ExportConfig
    data: Dataset
    network: nn.Module
    evidence: np.ndarray[Any, np.dtype[np.int64]]
    on_progress: OnProgress

    @property
    def name(self) -> str:
        return self.config.name or self.data.name

    @property
    def spec(self) -> PreprocessSpec:
        return self.run.record.preprocess

    @property
    def budget(self) -> Budget:
        return Budget(
            max_relative_difference=self.config.max_relative_difference,
            max_flip_rate=self.config.max_flip_rate,
        )

    def first_images(self) -> Images:
        """As many images of the evidence half as the largest batch compares: uint8 (N, H, W, C), N >= 2."""
        count = max(2, *self.config.batch_sizes)
        return pixels(self.data.valid, self.spec, self.evidence[:count])

    def chunks(self) -> Iterator[Chunk]:
        """All validation images, a chunk at a time, so that memory stays bounded."""
        is_evidence = np.zeros(len(self.data.valid), dtype=bool)
        is_evidence[self.evidence] = True
        for first in range(0, len(self.data.valid), _CHUNK):
            indices = np.arange(first, min(first + _CHUNK, len(self.data.valid)))
            self.on_progress("prove", first, len(self.data.valid))
            yield Chunk(
                first=first,
                images=pixels(self.data.valid, self.spec, indices),
                labels=self.data.valid.labels[indices],
                evidence=is_evidence[indices],
            )
        self.on_progress("prove", len(self.data.valid), len(self.data.valid))


def export(
    run: Run | str | os.PathLike[str],
    config: ExportConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    dataset: Dataset | None = None,
) -> Bundle:
    """Turns a training run into a sealed bundle, or refuses.

    ONNX is proved through the `Classifier` that users call, TorchScript and `.pt2` through PyTorch's
    loaders, each on every validation image against the trained network in PyTorch on the CPU.

    Args:
        run: a run's folder, or the run.
        config: options; None takes the defaults.
        out: where the bundle will stand; None means `bundle` beside the run's folder. A bundle
            there is replaced.
        on_progress: called with what is done (a word), how much of it, and how much there is.
        dataset: what `load_data` gave for the run's data, where the caller has it already.

    Returns:
        The bundle, opened again from where it stands.

    Raises:
        ParityError: a format misses its budget; `parity-report.json` beside `out` shows where, and
            no bundle is written.
        DataError: the validation images are not those that the run was measured on.
        BundleError: something that is no bundle stands at `out`.
        OutputError: `out` cannot be written.

    Example:
        >>> bundle = export("artifacts/digits/run")
        >>> bundle.manifest.variants[0].parity.flips
        0
    """
    opened = run if isinstance(run, Run) else load_run(run)
    target = Path(out) if out is not None else opened.path.parent / "bundle"
    _refuse_strangers(target)
    job = _prepare(opened, config or ExportConfig(), on_progress or _no_progress, dataset)
    with staged_folder(target) as folder:
        _write_formats(folder, job)
        report = _prove(folder, job)
        if any(entry.breaches for entry in report.formats):
            write_file(target.parent / REPORT, encode(report))
            raise ParityError(_complaint(report, target.parent / REPORT), report)
        _write(folder, EVIDENCE, encode(report))
        _finish(folder, job, report)
    (target.parent / REPORT).unlink(missing_ok=True)  # of an earlier export that failed
    return Bundle.open(target)


def _prepare(run: Run, config: ExportConfig, on_progress: OnProgress, dataset: Dataset | None) -> _Job:
    on_progress("data", 0, 1)
    changes = {"data": config.data, "data_root": config.data_root}
    found = {name: value for name, value in changes.items() if value is not None}
    data = dataset or load_data(msgspec.structs.replace(run.record.config.data, **found))
    if data.fingerprint != run.record.data_fingerprint:
        raise DataError(
            f"{data.name}: is not the data that {run.path} was trained on (its fingerprint is "
            f"{data.fingerprint[:12]}, the run's {run.record.data_fingerprint[:12]}): "
            "give the same images with --data, or train again"
        )
    data = data.without(run.record.unreadable)
    split_seed = run.record.evaluation.split_seed  # what was chosen, was chosen on the other half
    _, evidence = split_halves(data.valid.labels, split_seed)
    if len(evidence) < 2:
        raise DataError(
            f"{data.name}: {len(data.valid)} validation images are too few to prove anything: add images"
        )
    on_progress("data", 1, 1)
    shuffled = np.random.default_rng(split_seed).permutation(evidence)
    return _Job(run, config, data, run.network().eval(), shuffled, on_progress)


def _refuse_strangers(target: Path) -> None:
    """Only a bundle may be replaced by a bundle."""
    if (
        target.exists()
        and not (target / MANIFEST).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise BundleError(
            f"{target}: something that is no bundle stands there: choose another --out or remove it"
        )


def _write_formats(folder: Path, job: _Job) -> None:
    images = job.first_images()
    metadata = {
        "shipnet.name": job.name,
        "shipnet.labels": msgspec.json.encode(job.data.labels).decode(),
        "shipnet.preprocess": msgspec.json.encode(job.spec).decode(),
    }
    job.on_progress("onnx", 0, 1)
    _write(folder, FP32, to_onnx(job.network, images, metadata=metadata))
    job.on_progress("onnx", 1, 1)
    if not job.config.interop:
        return
    for name, path, to_format in (("torchscript", TORCHSCRIPT, to_torchscript), ("pt2", PT2, to_pt2)):
        job.on_progress(name, 0, 1)
        _write(folder, path, to_format(job.network, images))
        job.on_progress(name, 1, 1)
    _write(folder, WEIGHTS, job.run.weights_path.read_bytes())


def _write(folder: Path, relative: str, data: bytes) -> None:
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _prove(folder: Path, job: _Job) -> ParityReport:
    """Runs every format on every validation image."""
    classifier = _draft_classifier(folder, job)
    formats: dict[str, RunFunction] = {"onnx": classifier.logits}
    if job.config.interop:
        formats["torchscript"] = open_torchscript(folder / TORCHSCRIPT)
        formats["pt2"] = open_pt2(folder / PT2)
    reference = as_function(job.network)
    images = job.first_images()
    batches = {
        name: compare_batches(reference, run, images, job.config.batch_sizes) for name, run in formats.items()
    }
    with classifier:
        return prove(
            reference, formats, job.chunks(), batches=batches, labels=job.data.labels, budget=job.budget
        )


def _draft_classifier(folder: Path, job: _Job) -> Classifier:
    """The engine that users call, on a bundle whose evidence is still to be found."""
    manifest = _manifest(folder, job, {})
    bundle = Bundle(path=folder, manifest=manifest, identity="0" * 64)
    return Classifier(bundle, *resolve(bundle, device="cpu"))  # where the reference runs too


def _finish(folder: Path, job: _Job, report: ParityReport) -> None:
    """Card, manifest, seal; then opens the result as a user does and asks it once more."""
    parities = {entry.format: entry.parity for entry in report.formats}
    _write(folder, "README.md", model_card(_manifest(folder, job, parities)).encode())
    seal(folder, _manifest(folder, job, parities))
    images = job.first_images()[: max(job.config.batch_sizes)]
    with Classifier.load(folder, device="cpu") as classifier:
        found = classifier.logits(images)
    expected = as_function(job.network)(images)
    if (found.argmax(1) != expected.argmax(1)).any():
        raise ParityError("the sealed bundle decides otherwise than the one that was proved: export again")


def _manifest(folder: Path, job: _Job, parities: dict[str, Parity]) -> Manifest:
    """The manifest of what lies in the folder. Without parities it is a draft, which is never written."""
    record, spec = job.run.record, job.spec
    opset, ir_version = versions((folder / FP32).read_bytes())
    fp32 = Variant(
        precision="fp32",
        file=FP32,
        targets=("cpu", "cuda"),
        opset=opset,
        ir_version=ir_version,
        budget=job.budget,
        parity=parities.get("onnx", _UNPROVED),
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        name=job.name,
        created_utc=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        labels=job.data.labels,
        input=InputSpec(name=INPUT, height=spec.height, width=spec.width, channels=spec.channels),
        preprocess=spec,
        normalization=Normalization(mean=record.mean, std=record.std),
        output=OutputSpec(name=OUTPUT, num_classes=len(job.data.labels)),
        temperature=record.temperature,
        variants=(fp32,),
        interop=_interop(job, parities),
        provenance=_provenance(job),
        files=list_files(folder),
    )


_UNPROVED: Final[Any] = None  # stands where a draft has no evidence yet; a reader refuses it


def _interop(job: _Job, parities: dict[str, Parity]) -> tuple[Interop, ...]:
    if not job.config.interop:
        return ()
    return (
        Interop(format="torchscript", file=TORCHSCRIPT, parity=parities.get("torchscript")),
        Interop(format="pt2", file=PT2, parity=parities.get("pt2")),
        Interop(format="safetensors", file=WEIGHTS, parity=None),
    )


def _provenance(job: _Job) -> Provenance:
    record = job.run.record
    recipe = msgspec.to_builtins(record.config)
    recipe["data"] |= {"data": job.data.name, "data_root": None}  # never a local path
    recipe["weights"] = recipe["weights"] and Path(recipe["weights"]).name
    return Provenance(
        arch=record.arch,
        parameters=record.parameters,
        data=job.data.name,
        data_fingerprint=record.data_fingerprint,
        train_images=len(job.data.train),
        validation_images=len(job.data.valid),
        unreadable_images=len(record.unreadable),
        recipe=recipe,
        seed=record.config.seed,
        split_seed=record.evaluation.split_seed,
        epochs=record.epochs,
        versions={**record.versions, **installed_versions(_LIBRARIES)},
        git_commit=record.git_commit,
    )


def _complaint(report: ParityReport, where: Path) -> str:
    found = "; ".join(
        f"{entry.format}: {', '.join(entry.breaches)}" for entry in report.formats if entry.breaches
    )
    return f"the exported network is not the trained one, no bundle was written: {found}: see {where}"


def _no_progress(what: str, done: int, total: int) -> None:
    del what, done, total
