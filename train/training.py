"""From a configuration to a run: data, network, training, folder."""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from shipnet.runtime.errors import TrainingError
from shipnet.runtime.manifest import Normalization
from shipnet.runtime.staging import staged_folder

from . import channel_stats, provenance, recipe
from .architectures import build
from .config import BUILT_IN, TrainConfig
from .data import load_data
from .devices import ChosenDevice, choose_device, threads
from .events import EpochDone, LrFound, OnEvent, Started
from .feeds import open_feed
from .images import Dataset
from .loop import train
from .normalize import Deployable
from .run import Run, RunRecord, encode_weights, refuse_strangers, write_run
from .weights import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """One training, with every choice made."""

    config: TrainConfig
    dataset: Dataset
    device: ChosenDevice
    normalization: Normalization
    threads: int
    started: float

    @property
    def hardware(self) -> str:
        """What computes, in words."""
        on_cpu = self.device.device.type == "cpu"
        return f"{self.device.description}, {self.threads} thread(s)" if on_cpu else self.device.description


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    on_event: OnEvent | None = None,
    dataset: Dataset | None = None,
) -> Run:
    """Trains a network and writes its run, whole or not at all.

    The caller's random state is left as it was.

    Args:
        config: what to train on what, and how.
        out: the run's folder; None means `artifacts/NAME/run` with the data set's name. A run that
            stands there is replaced when the new one is complete.
        on_event: called with each `Event`, in this thread.
        dataset: what `load_data(config.data)` gave, where the caller has it already.

    Returns:
        The run, as `load_run` would open it.

    Raises:
        UsageError, DataError, ImageError: data or options that cannot be meant.
        DeviceError: the device is not there.
        OutputError, RunError: `out` cannot be written, or holds something else.
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
    target = Path(out) if out is not None else Path("artifacts") / dataset.name / "run"
    refuse_strangers(target)
    with staged_folder(target) as folder:
        config = recipe.resolve(_with_absolute_paths(config), dataset)
        if config.max_lr == "auto":
            config = _with_found_lr(config, dataset, folder=folder, notify=on_event or _ignore)
        count = recipe.cpu_threads(config, dataset, most=torch.get_num_threads())
        job = _Job(config, dataset, device, choose_normalization(config, dataset), count, started)
        with threads(count):
            model, history = _train(job, on_event or _ignore)
        weights = encode_weights(model.net.state_dict())
        record = _record(job, model, history=history, weights=weights)
        write_run(folder, record, weights)
    return Run(target, record)


def _train(job: _Job, notify: OnEvent) -> tuple[Deployable, tuple[EpochDone, ...]]:
    config, device = job.config, job.device.device
    feed = open_feed(job.dataset, config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        start: list[str] = []
        model = new_network(config, job.dataset, job.normalization, tell=start.append)
    model.to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
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
    try:
        return model, train(model, feed, config, notify)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{job.device.description}: its memory is full at batches of {config.batch_size}: lower --batch-size"
        ) from error


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
    """The configuration with the rate that a sweep suggests; the sweep's picture goes into the run's folder."""
    from .lr_finder import PICTURE, draw_sweep, find_lr

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


def _record(job: _Job, model: Deployable, *, history: tuple[EpochDone, ...], weights: bytes) -> RunRecord:
    dataset, last = job.dataset, history[-1]
    return RunRecord(
        created_utc=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        config=job.config,
        arch=str(job.config.arch),
        parameters=count_parameters(model),
        data=dataset.name,
        labels=dataset.labels,
        preprocess=dataset.spec,
        mean=job.normalization.mean,
        std=job.normalization.std,
        data_fingerprint=dataset.fingerprint,
        train_images=len(dataset.train),
        valid_images=len(dataset.valid),
        test_images=len(dataset.test) if dataset.test is not None else 0,
        epochs=last.epoch,
        accuracy=last.accuracy,
        valid_loss=last.valid_loss,
        history=history,
        warnings=dataset.warnings,
        device=job.hardware,
        versions=provenance.versions(),
        git_commit=provenance.git_commit(),
        wall_s=time.perf_counter() - job.started,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


def _ignore(event: object) -> None:
    del event
