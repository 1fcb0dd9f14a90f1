"""Which epoch is kept and on what that is chosen, when training stops, and that it repeats to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from shipnet.train import DataConfig, TrainConfig, fit, load_data, split_halves
from shipnet.train.channel_stats import measure
from shipnet.train.events import Event
from shipnet.train.feeds import open_feed
from shipnet.train.loop import DivergedError, train
from shipnet.train.recipe import resolve
from shipnet.train.splits import HALVES_SEED
from shipnet.train.state import TrainingState
from shipnet.train.training import new_network


def weights(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


def test_a_loss_that_is_no_number_names_the_images_of_its_batch(tmp_path: Path) -> None:
    """One image of NaN among all: what is named holds it."""
    data = load_data(DataConfig())
    config = resolve(
        TrainConfig(arch="conv_cnn", epochs=1, batch_size=8, crop_padding=0.0, device="cpu"), data
    )
    feed = open_feed(data, config, torch.device("cpu"))
    poison = data.train.names.index(feed.names(1, 7)[3])
    model = new_network(config, data, measure(data, 0))
    bad = torch.from_numpy(data.train.sources[poison])
    model.register_forward_hook(
        lambda _, inputs, logits: logits * (float("nan") if (inputs[0] == bad).flatten(1).all(1).any() else 1)
    )
    state = TrainingState.begin(model, config)
    with pytest.raises(DivergedError, match=rf"epoch 1, step 7: .*{data.train.names[poison]}"):
        train(state, feed, config, notify=lambda _: None)


def test_what_is_chosen_on_half_is_stated_on_the_other(tmp_path: Path) -> None:
    config = TrainConfig(arch="conv_cnn", epochs=3, device="cpu", keep="best")
    run = fit(config, tmp_path / "run")
    record, data = run.record, load_data(DataConfig())
    selection, evidence = split_halves(data.valid.labels, HALVES_SEED)
    assert record.selection is not None
    assert (record.selection.images, record.measured_images) == (len(selection), len(evidence)) == (179, 180)
    network = run.network()
    for indices, claimed in ((selection, record.selection.accuracy), (evidence, record.accuracy)):
        with torch.inference_mode():
            found = network(torch.from_numpy(data.valid.sources[indices])).argmax(1).numpy()
        assert (found == data.valid.labels[indices]).mean() == pytest.approx(claimed)
    best = max(record.history, key=lambda epoch: (epoch.accuracy, -epoch.valid_loss))
    assert (best.epoch, best.accuracy) == (record.selection.epoch, record.selection.accuracy)


def test_patience_ends_training_early(tmp_path: Path) -> None:
    config = TrainConfig(arch="conv_cnn", epochs=40, device="cpu", patience=2, max_lr=30.0, seed=2)
    record = fit(config, tmp_path / "run").record
    assert record.selection is not None
    assert record.epochs == len(record.history) < 40
    before = [epoch.accuracy for epoch in record.history[:-2]]
    assert max(before) >= max(epoch.accuracy for epoch in record.history[-2:])
    assert (record.selection.keep, record.selection.epoch) == ("last", record.epochs)


def test_deterministic_training_gives_the_same_weights_twice(tmp_path: Path) -> None:
    config = TrainConfig(arch="conv_cnn", epochs=2, device="cpu", deterministic=True)
    seen = []

    def look(event: Event) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    first, second = (fit(config, tmp_path / name, on_event=look) for name in ("first", "second"))
    assert weights(first.path) == weights(second.path)
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()
    assert first.record.config.deterministic
    assert "1 thread(s)" in first.record.device
