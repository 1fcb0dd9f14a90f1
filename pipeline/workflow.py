"""The whole way: train, export, verify, bench. What is finished and unchanged is not done again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct
from PIL import Image

from shipnet.export import ExportConfig, export
from shipnet.runtime import Bundle, Classifier, ShipnetError
from shipnet.runtime.benchmark import BenchReport, benchmark
from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.machine import hardware
from shipnet.runtime.plan import installed_versions
from shipnet.runtime.staging import staged_folder, write_file
from shipnet.runtime.storage import hash_file
from shipnet.runtime.verify import verify
from shipnet.train import CacheConfig, Dataset, TrainConfig, fit, load_data, load_run
from shipnet.train.recipe import resolve

from . import __version__

STAGES: Final = ("train", "export", "verify", "bench")
RECORD: Final = "pipeline.json"
_LIBRARIES: Final = ("shipnet", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")


class BenchConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the pipeline measures latency."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    warmup: int = 10
    min_runs: int = 50
    min_seconds: float = 1.0


class PipelineConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One frozen value per stage."""

    train: TrainConfig
    export: ExportConfig = msgspec.field(default_factory=ExportConfig)
    bench: BenchConfig = msgspec.field(default_factory=BenchConfig)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What `fit` is told besides its configuration.

    Attributes:
        resume: whether a training that was stopped goes on after its last epoch.
        cache: where decoded photographs are kept.
    """

    resume: bool = False
    cache: CacheConfig = field(default_factory=CacheConfig)


class FinishedStage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage that was finished: of which inputs and options, with which result.

    Attributes:
        key: sha256 over the stage's inputs and options.
        result: sha256 of what it made.
        wall_s: seconds it took.
    """

    key: str
    result: str
    wall_s: float


class PipelineRecord(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is finished below one output folder."""

    stages: dict[str, FinishedStage] = {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline left behind.

    Attributes:
        out: the output folder.
        bundle: the sealed bundle in it.
        report: latencies.
        skipped: stages that were finished already.
        wall_s: seconds the whole took.
    """

    out: Path
    bundle: Bundle
    report: BenchReport
    skipped: tuple[str, ...]
    wall_s: float


# Called with a stage, and with what happened: "started", "skipped", "finished", or an event of that stage.
OnStage = Callable[[str, object], None]


class _Pipeline:
    """One run of the pipeline over one output folder."""

    def __init__(
        self, config: PipelineConfig, out: Path, *, data: Dataset, on_stage: OnStage, options: FitOptions
    ) -> None:
        self.config = config
        self.out = out
        self.data = data
        self.on_stage = on_stage
        self.options = options
        self.skipped: list[str] = []

    def train(self) -> None:
        """Fits the network, unless the same one was fitted on the same images."""
        run = self.out / "run"
        key = _key(resolve(self.config.train, self.data), self.data.fingerprint, __version__)
        self._stage("train", key, lambda: _identity(run), self._fit)

    def _fit(self) -> None:
        fit(
            self.config.train,
            out=self.out / "run",
            on_event=lambda event: self.on_stage("train", event),
            dataset=self.data,
            resume=self.options.resume,
            cache=self.options.cache,
        )

    def export(self) -> None:
        """Exports and proves it, and lays a few images beside the bundle."""
        bundle = self.out / "bundle"
        key = _key(self.config.export, _identity(self.out / "run"), __version__)
        self._stage("export", key, lambda: Bundle.open(bundle).identity, self._export)

    def _export(self) -> None:
        export(
            self.out / "run",
            self.config.export,
            out=self.out / "bundle",
            on_progress=lambda what, done, total: self.on_stage("export", (what, done, total)),
            dataset=self.data,
        )
        write_samples(self.data, self.out / "samples")

    def verify(self) -> None:
        """Opens and runs the bundle as its users will."""
        report = self.out / "verify.json"
        self._stage("verify", self._here(), lambda: hash_file(report), self._verify)

    def _verify(self) -> None:
        found = verify(self.out / "bundle")
        if not found.passed:
            failed = ", ".join(check.name for check in found.checks if check.failed)
            raise ShipnetError(f"{self.out / 'bundle'}: failed: {failed}")
        write_file(self.out / "verify.json", encode(found))

    def bench(self) -> None:
        """Measures the bundle's latency on this machine."""
        report = self.out / "bench.json"
        key = _key(self.config.bench, self._here())
        self._stage("bench", key, lambda: hash_file(report), self._bench)

    def _bench(self) -> None:
        options = self.config.bench
        with Classifier.load(self.out / "bundle") as classifier:
            report = benchmark(
                classifier,
                options.batch_sizes,
                warmup=options.warmup,
                min_runs=options.min_runs,
                min_seconds=options.min_seconds,
            )
        write_file(self.out / "bench.json", encode(report))

    def _here(self) -> str:
        """What a result on this machine depends on: the bundle, the libraries, the hardware."""
        identity = Bundle.open(self.out / "bundle").identity
        return _key(hardware(), identity, *sorted(installed_versions(_LIBRARIES).items()))

    def _stage(self, name: str, key: str, result: Callable[[], str], work: Callable[[], None]) -> None:
        """Does the work unless its result stands there already, unchanged, from the same inputs."""
        record = read_record(self.out)
        if _is_finished(record.stages.get(name), key, result):
            self.skipped.append(name)
            self.on_stage(name, "skipped")
            return
        self.on_stage(name, "started")
        later = {stage: done for stage, done in record.stages.items() if stage != name}
        write_file(self.out / RECORD, encode(PipelineRecord(stages=later)))
        start = time.perf_counter()
        work()
        done = FinishedStage(key=key, result=result(), wall_s=round(time.perf_counter() - start, 3))
        write_file(self.out / RECORD, encode(PipelineRecord(stages={**later, name: done})))
        self.on_stage(name, "finished")


def run_pipeline(
    config: PipelineConfig,
    out: Path,
    *,
    force: bool = False,
    fit_options: FitOptions | None = None,
    on_stage: OnStage | None = None,
) -> Outcome:
    """Trains, exports, verifies and benchmarks into one folder.

    A stage whose inputs and options are unchanged is skipped. When a stage fails, what the earlier
    ones made stays, and the next call goes on from there.

    Args:
        config: of every stage.
        out: the output folder; it will hold `run/`, `bundle/`, `samples/`, `verify.json`, `bench.json`.
        force: whether finished stages are done again.
        fit_options: how the network is trained where that changes nothing of it.
        on_stage: called with a stage and what happened in it.

    Raises:
        ShipnetError: whatever a stage raises.
    """
    start = time.perf_counter()
    data = load_data(config.train.data)
    if force:
        (out / RECORD).unlink(missing_ok=True)
    pipeline = _Pipeline(
        config, out, data=data, on_stage=on_stage or _ignore, options=fit_options or FitOptions()
    )
    for stage in STAGES:
        getattr(pipeline, stage)()
    report = decode((out / "bench.json").read_bytes(), BenchReport, where=str(out / "bench.json"))
    return Outcome(
        out=out,
        bundle=Bundle.open(out / "bundle"),
        report=report,
        skipped=tuple(pipeline.skipped),
        wall_s=time.perf_counter() - start,
    )


def read_record(out: Path) -> PipelineRecord:
    """What is finished below a folder; nothing where the record is missing or cannot be read."""
    path = out / RECORD
    try:
        return decode(path.read_bytes(), PipelineRecord, where=str(path))
    except (OSError, ShipnetError):
        return PipelineRecord()


def write_samples(data: Dataset, folder: Path, *, per_class: int = 1, most: int = 10) -> None:
    """Lays a few validation images in a folder, as PNG or as the files they are, to try the bundle on.

    Args:
        data: where they come from.
        folder: it is replaced.
        per_class: images of each class.
        most: images in all.
    """
    with staged_folder(folder) as staged:
        written = 0
        for label, name in enumerate(data.labels):
            plain = "".join(letter if letter.isalnum() else "-" for letter in name)
            for index in np.flatnonzero(data.valid.labels == label)[:per_class]:
                if written == most:
                    return
                source = data.valid[int(index)]
                written += 1
                if isinstance(source, Path):
                    (staged / f"{plain}-{index}{source.suffix.lower()}").write_bytes(source.read_bytes())
                else:
                    pixels = source[:, :, 0] if source.shape[2] == 1 else source
                    Image.fromarray(pixels).save(staged / f"{plain}-{index}.png")


def _is_finished(done: FinishedStage | None, key: str, result: Callable[[], str]) -> bool:
    if done is None or done.key != key:
        return False
    try:
        return done.result == result()
    except (ShipnetError, OSError):
        return False


def _identity(run: Path) -> str:
    """Sha256 over a run's record and weights."""
    opened = load_run(run)
    return _key(hash_file(opened.path / "run.json"), hash_file(opened.weights_path))


def _key(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _ignore(stage: str, event: object) -> None:
    del stage, event
