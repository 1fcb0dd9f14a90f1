"""What a step minimises and how: groups, rates, loss, average."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from shipnet.train import Deployable, TrainConfig, fit
from shipnet.train.architectures import build
from shipnet.train.optimizer import (
    AVERAGE_EVERY,
    make_average,
    make_loss,
    make_optimizer,
    parameter_groups,
)
from shipnet.train.recipe import Recipe
from shipnet.train.schedule import one_cycle, set_rates

RECIPE = Recipe(epochs=4, max_lr=0.1, batch_size=8, flip=False)


def recipe(**changes: object) -> Recipe:
    return Recipe(**{name: getattr(RECIPE, name) for name in RECIPE.__struct_fields__} | changes)


def small_model(arch: str = "basic_cnn") -> Deployable:
    return Deployable(build(arch, channels=1, num_classes=10, image_size=28), (0.5,), (0.5,))


def test_norms_and_biases_do_not_decay() -> None:
    decaying, others = parameter_groups(small_model().net, recipe(weight_decay=0.02))
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.02, 0.0)
    assert {parameter.ndim for parameter in decaying["params"]} == {4}
    assert len(decaying["params"]) == 5
    assert len(others["params"]) == 5 + 2 * 5


@pytest.mark.parametrize(
    ("arch", "size", "stages"), [("mnist_resnet", 28, 5), ("resnet18", 64, 6), ("resnet50", 64, 6)]
)
def test_rates_grow_geometrically_from_the_first_stage_to_the_head(arch: str, size: int, stages: int) -> None:
    with torch.device("meta"):
        net = build(arch, channels=1, num_classes=10, image_size=size)
    groups = parameter_groups(net, recipe(lr_div=100.0))
    rates = sorted({group["max_lr"] for group in groups})
    assert len(rates) == stages
    assert rates[0] == pytest.approx(0.001)
    assert rates[-1] == pytest.approx(0.1)
    ratios = [high / low for low, high in itertools.pairwise(rates)]
    assert ratios == pytest.approx([100 ** (1 / (stages - 1))] * (stages - 1))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in net.parameters())
    first = next(group for group in groups if group["max_lr"] == rates[0])
    assert first["params"][0] is next(net.parameters())


@pytest.mark.parametrize(("steps", "epochs", "pct_start"), [(7, 4, 0.25), (10, 3, 0.6), (1, 1, 0.25)])
def test_the_rates_are_those_of_torch(steps: int, epochs: int, pct_start: float) -> None:
    chosen = recipe(epochs=epochs, pct_start=pct_start, div_factor=10.0, final_div_factor=50.0)
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=chosen.max_lr, betas=(0.9, 0.99))
    schedule = OneCycleLR(
        theirs,
        chosen.max_lr,
        total_steps=steps * epochs,
        pct_start=pct_start,
        div_factor=10.0,
        final_div_factor=50.0,
        base_momentum=chosen.base_momentum,
        max_momentum=chosen.max_momentum,
    )
    mine = make_optimizer(small_model(), chosen)
    for step in range(steps * epochs):
        rate = set_rates(mine, step, total=steps * epochs, recipe=chosen)
        (expected,) = theirs.param_groups
        assert rate == pytest.approx(expected["lr"], rel=1e-9)
        for group in mine.param_groups:
            assert (group["lr"], group["betas"]) == (rate, pytest.approx(expected["betas"]))
        theirs.step()
        if step + 1 < steps * epochs:
            schedule.step()


def test_a_rise_of_a_single_step_starts_at_the_peak() -> None:
    """Where torch's own schedule divides by zero."""
    assert one_cycle(0, 4, RECIPE) == pytest.approx((1.0, RECIPE.base_momentum))
    assert one_cycle(3, 4, RECIPE) == pytest.approx((1 / 25 / 1e4, RECIPE.max_momentum))


def test_adam_has_the_stated_betas() -> None:
    optimizer = make_optimizer(small_model(), recipe(beta2=0.95))
    assert {group["betas"][1] for group in optimizer.param_groups} == {0.95}


def test_smoothing_spreads_the_label() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    soft = functional.one_hot(labels, 4).float() * 0.8 + 0.2 / 4
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert make_loss(recipe(label_smoothing=0.2))(logits, labels).item() == pytest.approx(expected.item())
    plain = functional.cross_entropy(logits, labels)
    assert torch.equal(make_loss(RECIPE)(logits, labels), plain)


def test_the_average_follows_weights_and_statistics() -> None:
    model = small_model()
    average = make_average(model, recipe(ema_decay=0.9))
    assert average is not None
    average.update_parameters(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.net.parameters(), *model.net.buffers()):
            tensor.add_(1)
    average.update_parameters(model)
    kept = 0.9**AVERAGE_EVERY
    for name, tensor in average.module.state_dict().items():
        if name.endswith(("weight", "bias", "running_mean", "running_var")):
            assert torch.allclose(tensor, before[name] + 1 - kept, atol=1e-6), name
    assert make_average(model, RECIPE) is None


def test_the_average_is_what_is_measured_and_kept(tmp_path: Path) -> None:
    """A decay that forgets within a step's time gives the weights themselves; a slow one lags behind."""
    options = {"arch": "conv_cnn", "epochs": 1, "device": "cpu"}
    plain = fit(TrainConfig(**options), tmp_path / "plain" / "run")
    slow = fit(TrainConfig(**options, ema_decay=0.99), tmp_path / "slow" / "run")
    assert slow.record.history[0].train_loss == plain.record.history[0].train_loss
    assert slow.record.valid_loss > plain.record.valid_loss + 0.1
    weights = [run.network().state_dict()["net.conv1.0.weight"] for run in (plain, slow)]
    assert not torch.equal(*weights)
