"""The sweep on real networks and data."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from shipnet.runtime import TrainingError, UsageError
from shipnet.train import DataConfig, TrainConfig, load_data
from shipnet.train.images import ImageSet
from shipnet.train.lr_finder import Finding, Span, draw_sweep, find_lr, sweep
from shipnet.train.recipe import SMALL_NET_LR

CONFIG = TrainConfig(arch="conv_cnn", device="cpu")


@pytest.fixture(scope="module")
def finding() -> Finding:
    return find_lr(CONFIG)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 16, 4, generator=generator)
    return [(batch, (batch[:, 0] > 0).long()) for batch in images]


def test_everything_is_left_as_it_was() -> None:
    model = network().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    loss = torch.nn.functional.cross_entropy
    for images, labels in batches(3):  # so that the optimiser has a state and the parameters gradients
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    weights = copy.deepcopy(model.state_dict())
    settings = copy.deepcopy(optimizer.state_dict())
    gradient = model[0].weight.grad.clone()
    random = torch.random.get_rng_state()
    curve = sweep(model, optimizer, batches=batches(200), loss=loss, span=Span())
    assert len(curve.losses) > 50
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(torch.random.get_rng_state(), random)
    after = optimizer.state_dict()
    assert after["param_groups"] == settings["param_groups"]
    for key, state in settings["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in state.items())


def test_rates_rise_by_one_factor_and_groups_keep_their_ratio() -> None:
    model = network()
    groups = [
        {"params": model[0].parameters(), "lr": 0.01},
        {"params": model[1:].parameters(), "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(groups)
    seen: list[list[float]] = []
    curve = sweep(
        model,
        optimizer,
        batches=batches(30),
        loss=torch.nn.functional.cross_entropy,
        span=Span(low=1e-4, high=1e-1, steps=30),
        on_step=lambda done, total: seen.append([group["lr"] for group in optimizer.param_groups]),
    )
    assert curve.learning_rates == pytest.approx(np.geomspace(1e-4, 1e-1, 30))
    assert np.array(seen)[:, 1] == pytest.approx(curve.learning_rates)
    assert np.array(seen)[:, 0] == pytest.approx(curve.learning_rates / 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]


def test_a_loss_that_explodes_ends_the_sweep() -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss = torch.nn.functional.cross_entropy
    curve = sweep(model, optimizer, batches=batches(300), loss=loss, span=Span(high=1e3, steps=300))
    assert curve.diverged
    assert len(curve.losses) < 290
    assert np.isfinite(curve.losses).all()


def test_it_suggests_rates_that_digits_learn_from(finding: Finding) -> None:
    assert (finding.data, finding.arch, finding.batch_size) == ("digits", "conv_cnn", 64)
    assert len(finding.losses) > 150  # more than the 22 batches of an epoch: they come round again
    assert 3e-3 < finding.suggestions.valley < 0.3
    assert 1e-4 < finding.suggestions.steepest < 10


@pytest.mark.parametrize("seed", range(3))
def test_the_valley_is_near_the_rate_that_the_recipe_was_tuned_to(seed: int) -> None:
    found = find_lr(TrainConfig(arch="mnist_resnet", device="cpu", seed=seed)).suggestions.valley
    assert SMALL_NET_LR / 3 < found < SMALL_NET_LR * 3


def test_the_sweep_trains_as_training_does_at_its_peak() -> None:
    """Adam's first beta is lower there; a sweep with the one of the ends would explode too early."""
    at_peak, slow = (
        find_lr(TrainConfig(arch="conv_cnn", device="cpu", base_momentum=beta), span=Span(steps=60))
        for beta in (0.85, 0.95)
    )
    ends = find_lr(TrainConfig(arch="conv_cnn", device="cpu", max_momentum=0.97), span=Span(steps=60))
    assert ends.losses == at_peak.losses != slow.losses


def test_a_seed_gives_one_curve_and_the_validation_images_play_no_part(finding: Finding) -> None:
    data = load_data(CONFIG.data)
    black = ImageSet(data.valid.names, data.valid.labels, np.zeros_like(data.valid.sources))
    torch.rand(1)
    again = find_lr(CONFIG, images=(replace(data, valid=black), None))
    assert again.losses == finding.losses


def test_the_picture(finding: Finding, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(finding, data="a $ and \\frac{")
    draw_sweep(odd, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.size == (1000, 560)
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 1.0, "high": 0.1}, "low is 1, expected less than high, which is 0.1"),
        ({"low": 0.0}, "low is 0.0; expected a number from 1e-12"),
        ({"steps": 3}, "steps is 3; expected a whole number from 20"),
    ],
)
def test_a_span_that_cannot_be_meant(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Span(**values)  # type: ignore[arg-type]


def test_a_range_in_which_nothing_is_learnt_is_refused() -> None:
    config = TrainConfig(data=DataConfig(), arch="conv_cnn", device="cpu")
    with pytest.raises(TrainingError, match=r"the loss never fell|too few to read a rate from"):
        find_lr(config, span=Span(low=500.0, high=1000.0, steps=20))
