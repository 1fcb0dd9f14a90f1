"""One training with every choice made, and what its checkpoints and its run say of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from dataclasses import dataclass

from shipnet.runtime.manifest import Normalization

from . import provenance
from .checkpoint import Checkpoint
from .config import TrainConfig
from .devices import ChosenDevice
from .evaluation import RunEvaluation
from .images import Dataset
from .photos import Photos
from .run import RunRecord, Selection
from .splits import HALVES_SEED, Indices, split_halves
from .state import TrainingState


@dataclass(frozen=True, slots=True)
class Job:
    """One training, with every choice made.

    Attributes:
        asked: the configuration before a learning rate was looked for.
        checkpoint: from which it goes on; None: from the start.
    """

    asked: TrainConfig
    config: TrainConfig
    dataset: Dataset
    photos: Photos | None
    device: ChosenDevice
    normalization: Normalization
    threads: int
    started: float
    checkpoint: Checkpoint | None

    @property
    def hardware(self) -> str:
        """What computes, in words."""
        on_cpu = self.device.device.type == "cpu"
        return f"{self.device.description}, {self.threads} thread(s)" if on_cpu else self.device.description

    @property
    def wall_s(self) -> float:
        """Seconds until now, those of the processes before this one included."""
        earlier = self.checkpoint.elapsed_s if self.checkpoint else 0.0
        return earlier + time.perf_counter() - self.started

    @property
    def resumed_after(self) -> tuple[int, ...]:
        """The epochs after which a new process went on."""
        return (*self.checkpoint.resumed_after, self.checkpoint.epoch) if self.checkpoint else ()

    @property
    def halves(self) -> tuple[Indices | None, Indices | None]:
        """The validation images that choose and those that measure what was chosen; None: all of them."""
        if not self.config.chooses:
            return None, None
        return split_halves(self.dataset.valid.labels, HALVES_SEED)


def checkpoint_of(job: Job, state: TrainingState) -> Checkpoint:
    """Where a training stands, but for its tensors."""
    return Checkpoint(
        asked=job.asked,
        config=job.config,
        data_fingerprint=job.dataset.fingerprint,
        normalization=job.normalization,
        hardware=job.hardware,
        versions=provenance.versions(),
        history=state.history,
        resumed_after=job.resumed_after,
        elapsed_s=job.wall_s,
    )


def record_of(
    job: Job,
    state: TrainingState,
    *,
    measured: tuple[float, float],
    evaluation: RunEvaluation,
    weights: bytes,
) -> RunRecord:
    """What `run.json` says of a finished training.

    Args:
        job: what was asked for, and what was chosen.
        state: after the last epoch.
        measured: (loss, accuracy) of the weights, on the evidence half where the other chose.
        evaluation: all that was measured of them.
        weights: as the file holds them.
    """
    dataset = job.dataset
    valid_loss, accuracy = measured
    _, evidence = job.halves
    return RunRecord(
        created_utc=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        config=job.config,
        arch=str(job.config.arch),
        parameters=state.parameters,
        data=dataset.name,
        labels=dataset.labels,
        preprocess=dataset.spec,
        mean=job.normalization.mean,
        std=job.normalization.std,
        data_fingerprint=dataset.fingerprint,
        train_images=len(dataset.train),
        valid_images=len(dataset.valid),
        test_images=len(dataset.test) if dataset.test is not None else 0,
        unreadable=dataset.unreadable,
        epochs=state.history[-1].epoch,
        accuracy=accuracy,
        valid_loss=valid_loss,
        measured_images=len(dataset.valid) if evidence is None else len(evidence),
        selection=_selection(job, state),
        history=state.history,
        temperature=evaluation.temperature,
        evaluation=evaluation,
        warnings=dataset.warnings,
        device=job.hardware,
        versions=provenance.versions(),
        git_commit=provenance.git_commit(),
        resumed_after=job.resumed_after,
        wall_s=job.wall_s,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


def _selection(job: Job, state: TrainingState) -> Selection | None:
    chosen, _ = job.halves
    if chosen is None:
        return None
    return Selection(
        keep=job.config.keep,
        patience=job.config.patience,
        halves_seed=HALVES_SEED,
        images=len(chosen),
        epoch=state.kept.epoch,
        accuracy=state.kept.accuracy,
        valid_loss=state.kept.valid_loss,
    )
