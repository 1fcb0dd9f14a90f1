"""From a configuration to a run: data, network, training, folder."""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from shipnet.runtime.errors import TrainingError
from shipnet.runtime.manifest import Normalization
from shipnet.runtime.staging import staged_folder

from . import channel_stats, provenance, recipe
from .architectures import build
from .checkpoint import Checkpoint, CheckpointFolder
from .config import BUILT_IN, TrainConfig
from .data import load_data
from .devices import ChosenDevice, choose_device, deterministic, threads
from .evaluation import RunEvaluation, evaluate_run
from .events import LrFound, OnEvent, Started
from .feeds import open_feed
from .images import Dataset
from .loop import evaluate, train
from .normalize import Deployable
from .run import (
    Run,
    RunError,
    RunRecord,
    Selection,
    encode_weights,
    load_run,
    refuse_strangers,
    write_run,
)
from .splits import HALVES_SEED, Indices, split_halves
from .state import TrainingState
from .weights import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """One training, with every choice made.

    Attributes:
        asked: the configuration before a learning rate was looked for.
        checkpoint: from which it goes on; None: from the start.
    """

    asked: TrainConfig
    config: TrainConfig
    dataset: Dataset
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


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    on_event: OnEvent | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
) -> Run:
    """Trains a network and writes its run, whole or not at all.

    After every epoch a checkpoint is written into `OUT.partial`, which goes when the run is whole: a
    process that dies at any moment loses no more than the epoch it was in. The caller's random state is
    left as it was.

    Args:
        config: what to train on what, and how.
        out: the run's folder; None means `artifacts/NAME/run` with the data set's name. A run that
            stands there is replaced when the new one is complete.
        on_event: called with each `Event`, in this thread.
        dataset: what `load_data(config.data)` gave, where the caller has it already.
        resume: whether to go on from the last checkpoint, to the same weights as without the break. With
            none, training starts at the beginning; where the very run stands finished, it is returned.

    Returns:
        The run, as `load_run` would open it.

    Raises:
        UsageError, DataError, ImageError: data or options that cannot be meant.
        DeviceError: the device is not there.
        OutputError, RunError: `out` cannot be written, or holds something else; what is to be resumed
            is damaged, or was another training: the message names the fields that differ.
        WeightsError: weights to start from that cannot be had, or are another network's.
        TrainingError: the loss is no longer a number, or the device's memory is full.

    Example:
        >>> from shipnet.train import TrainConfig, fit
        >>> run = fit(TrainConfig(), out="artifacts/digits/run")
        >>> run.record.accuracy > 0.97
        True
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    dataset = dataset or load_data(config.data)
    place = Path(out) if out is not None else Path("artifacts") / dataset.name / "run"
    refuse_strangers(place)
    asked = recipe.resolve(_with_absolute_paths(config), dataset)
    checkpoints = CheckpointFolder(place)
    if resume and checkpoints.read() is None and (finished := _finished(place, asked, dataset)) is not None:
        return finished
    checkpoint = checkpoints.open(asked, dataset.fingerprint, resume=resume)
    notify = on_event or _ignore
    with checkpoints.kept_on_failure(asked), deterministic(asked.deterministic):
        if checkpoint is not None:
            config, normalization = checkpoint.config, checkpoint.normalization
        else:
            config = _with_found_lr(asked, dataset, folder=checkpoints.path, notify=notify)
            normalization = choose_normalization(config, dataset)
        count = recipe.cpu_threads(config, dataset, most=torch.get_num_threads())
        job = _Job(asked, config, dataset, device, normalization, count, started, checkpoint)
        with threads(count), _own_random_state(device.device, config.seed):
            record, weights = _train(job, checkpoints, notify)
        with staged_folder(place) as folder:
            write_run(folder, record, weights)
            checkpoints.hand_over(folder)
    checkpoints.clear()
    return Run(place, record)


def _train(job: _Job, checkpoints: CheckpointFolder, notify: OnEvent) -> tuple[RunRecord, bytes]:
    config, device = job.config, job.device.device
    feed = open_feed(job.dataset, config, device)
    start: list[str] = []
    model = new_network(config, job.dataset, job.normalization, tell=start.append).to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    state = TrainingState.begin(model, config)
    if job.checkpoint is not None:
        checkpoints.restore(job.checkpoint, state)
    notify(
        Started(
            arch=str(config.arch),
            parameters=count_parameters(model),
            device=job.hardware,
            data=job.dataset.name,
            train_images=len(job.dataset.train),
            valid_images=len(job.dataset.valid),
            epochs=int(config.epochs or 0),
            steps=feed.steps,
            start=tuple(start),
        )
    )
    for epoch in state.history:
        notify(epoch)
    selection, evidence = job.halves
    try:
        train(
            state,
            feed,
            config,
            notify=notify,
            selection=selection,
            save=lambda state: checkpoints.write(_checkpoint(job, state), state.tensors()),
        )
        kept = state.kept
        measured = (
            (kept.valid_loss, kept.accuracy) if evidence is None else evaluate(model, feed.valid(evidence))
        )
        evaluation = evaluate_run(model, job.dataset, batches=feed.valid(), chooses=config.chooses)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{job.device.description}: its memory is full at batches of {config.batch_size}: lower --batch-size"
        ) from error
    weights = encode_weights(model.net.state_dict())
    return _record(job, state, measured=measured, evaluation=evaluation, weights=weights), weights


def new_network(
    config: TrainConfig,
    dataset: Dataset,
    normalization: Normalization,
    *,
    tell: Callable[[str], None] = logger.info,
) -> Deployable:
    """The network as training begins: fresh, or with the weights that it starts from.

    Args:
        config: as `recipe.resolve` gives it.
        dataset: decides input and classes.
        normalization: goes in front of the network.
        tell: called with each sentence about weights that were loaded.

    Raises:
        WeightsError: they cannot be had or read, or are another network's.
    """
    net = build(
        str(config.arch),
        channels=dataset.spec.channels,
        num_classes=len(dataset.labels),
        image_size=dataset.spec.height,
    )
    if config.starts_from_weights:
        for sentence in load_weights(net, config, dataset.labels):
            tell(sentence)
    return Deployable(net, normalization.mean, normalization.std)


def count_parameters(model: Deployable) -> int:
    """Trainable numbers in the network."""
    return sum(parameter.numel() for parameter in model.net.parameters())


def _with_found_lr(config: TrainConfig, dataset: Dataset, *, folder: Path, notify: OnEvent) -> TrainConfig:
    """The configuration, "auto" replaced by the rate that a sweep suggests; its picture goes into the folder."""
    from .lr_finder import PICTURE, draw_sweep, find_lr

    if config.max_lr != "auto":
        return config
    finding = find_lr(config, dataset=dataset)
    draw_sweep(finding, folder / PICTURE)
    found = LrFound(finding.suggestions.valley, len(finding.losses), finding.wall_s)
    logger.info("max_lr %g: the valley of a sweep over %d batches", found.max_lr, found.steps)
    notify(found)
    return msgspec.structs.replace(config, max_lr=found.max_lr)


def choose_normalization(config: TrainConfig, dataset: Dataset) -> Normalization:
    """The statistics that were given, or those of the training images."""
    if config.mean is not None and config.std is not None:
        return Normalization(mean=config.mean, std=config.std)
    return channel_stats.measure(dataset, config.seed)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """So that the run's data are found again from another working directory."""
    data = config.data
    root = data.data_root or os.environ.get("SHIPNET_DATA")
    if data.data in BUILT_IN:
        data = msgspec.structs.replace(data, data_root=str(Path(root).absolute()) if root else None)
    else:
        data = msgspec.structs.replace(data, data=str(Path(data.data).absolute()))
    weights = config.weights and str(Path(config.weights).absolute())
    return msgspec.structs.replace(config, data=data, weights=weights)


def _checkpoint(job: _Job, state: TrainingState) -> Checkpoint:
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


def _finished(place: Path, config: TrainConfig, dataset: Dataset) -> Run | None:
    """The run that stands at `place`, where it is the very one that is asked for."""
    try:
        run = load_run(place)
    except RunError:
        return None
    found = run.record.config
    if config.max_lr == "auto":
        found = msgspec.structs.replace(found, max_lr="auto")
    same = found == config and run.record.data_fingerprint == dataset.fingerprint
    if same:
        logger.warning("%s: is finished, nothing to resume", place)
    return run if same else None


@contextmanager
def _own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's generators, and gives the caller's state back in the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _record(
    job: _Job,
    state: TrainingState,
    *,
    measured: tuple[float, float],
    evaluation: RunEvaluation,
    weights: bytes,
) -> RunRecord:
    dataset = job.dataset
    valid_loss, accuracy = measured
    _, evidence = job.halves
    return RunRecord(
        created_utc=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        config=job.config,
        arch=str(job.config.arch),
        parameters=count_parameters(state.model),
        data=dataset.name,
        labels=dataset.labels,
        preprocess=dataset.spec,
        mean=job.normalization.mean,
        std=job.normalization.std,
        data_fingerprint=dataset.fingerprint,
        train_images=len(dataset.train),
        valid_images=len(dataset.valid),
        test_images=len(dataset.test) if dataset.test is not None else 0,
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


def _selection(job: _Job, state: TrainingState) -> Selection | None:
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


def _ignore(event: object) -> None:
    del event
