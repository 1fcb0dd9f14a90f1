"""Recipes: whole, overridden field by field, and never with an option that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest

from shipnet.cli import main
from shipnet.runtime import PreprocessSpec, UsageError
from shipnet.train import DataConfig, Dataset, ImageSet, TrainConfig, fit, load_data
from shipnet.train.config import RECIPES, SMALL_NETS
from shipnet.train.recipe import Recipe, resolve, settings

MakeFolder = Callable[..., Path]
DIGITS = load_data(DataConfig())


def as_large_as_mnist() -> Dataset:
    """60,000 images of 28x28 pixels, as far as a recipe looks: only their number and size count."""
    labels = np.arange(60_000) % 10
    sources = np.broadcast_to(np.zeros((1, 28, 28, 1), np.uint8), (60_000, 28, 28, 1))
    images = ImageSet(tuple(map(str, labels)), labels, sources)
    spec = PreprocessSpec(height=28, width=28, channels=1)
    return Dataset("mnist", tuple("0123456789"), spec, images, images, None, "0" * 64)


@pytest.fixture
def photographs(make_folder: MakeFolder) -> Dataset:
    root = make_folder({"cat": 20, "dog": 20}, size=(90, 70), mode="RGB")
    return load_data(DataConfig(data=str(root), image_size=64))


def test_the_notebook_is_the_default_on_mnist() -> None:
    chosen = resolve(TrainConfig(), as_large_as_mnist())
    assert (chosen.recipe, chosen.arch) == ("notebook", "mnist_resnet")
    assert (chosen.epochs, chosen.batch_size, chosen.max_lr) == (12, 256, 0.03)
    assert (chosen.pct_start, chosen.div_factor, chosen.final_div_factor) == (0.25, 25.0, 1e4)
    assert (chosen.base_momentum, chosen.max_momentum, chosen.beta2) == (0.85, 0.95, 0.99)
    assert (chosen.crop_padding, chosen.label_smoothing, chosen.ema_decay) == (2 / 28, 0.0, 0.0)
    assert (chosen.weight_decay, chosen.flip, chosen.lr_div) == (0.01, False, 1.0)


def test_fast_takes_fewer_epochs() -> None:
    chosen = resolve(TrainConfig(recipe="fast"), as_large_as_mnist())
    usual = resolve(TrainConfig(), as_large_as_mnist())
    assert (chosen.epochs, usual.epochs) == (7, 12)
    assert msgspec.structs.replace(chosen, recipe="notebook", epochs=12) == usual


def test_photographs_take_the_photo_recipe(photographs: Dataset) -> None:
    chosen = resolve(TrainConfig(), photographs)
    assert (chosen.recipe, chosen.arch, chosen.flip) == ("photo", "resnet18", True)
    assert (chosen.trivial_augment, chosen.label_smoothing, chosen.crop_padding) == (True, 0.1, 0.0)
    small = resolve(TrainConfig(arch="mnist_resnet"), photographs)
    assert (small.recipe, small.trivial_augment, small.max_lr) == ("notebook", False, 0.03)


@pytest.mark.parametrize("arch", [*SMALL_NETS, "resnet18"])
@pytest.mark.parametrize("name", ["notebook", "fast"])
def test_what_is_resolved_is_whole_and_stays(name: str, arch: str) -> None:
    chosen = resolve(TrainConfig(recipe=name, arch=arch), DIGITS)
    recipe = settings(chosen)
    assert {field: getattr(chosen, field) for field in Recipe.__struct_fields__} == msgspec.structs.asdict(
        recipe
    )
    assert resolve(chosen, DIGITS) == chosen
    assert chosen.max_lr == (0.002 if arch == "resnet18" else 0.03)


# For every number of a recipe a value that none of the recipes proposes.
OTHERS: dict[str, float] = {
    "epochs": 7,
    "max_lr": 0.011,
    "batch_size": 77,
    "flip": True,
    "weight_decay": 0.013,
    "label_smoothing": 0.17,
    "pct_start": 0.37,
    "div_factor": 19.0,
    "final_div_factor": 23.0,
    "base_momentum": 0.81,
    "max_momentum": 0.97,
    "beta2": 0.93,
    "ema_decay": 0.91,
    "crop_padding": 0.2,
    "affine_degrees": 11.0,
    "affine_scale": 0.12,
    "lr_div": 3.0,
}


@pytest.mark.parametrize("name", ["notebook", "fast"])
@pytest.mark.parametrize("field", OTHERS)
def test_one_option_overrides_one_number(name: str, field: str) -> None:
    plain = resolve(TrainConfig(recipe=name), DIGITS)
    changed = resolve(TrainConfig(recipe=name, **{field: OTHERS[field]}), DIGITS)
    differing = {name for name in plain.__struct_fields__ if getattr(plain, name) != getattr(changed, name)}
    assert getattr(changed, field) == OTHERS[field]
    assert differing - {"epochs"} <= {field}  # a batch of another size may take other epochs


def test_every_number_has_an_option() -> None:
    assert set(OTHERS) | {"trivial_augment", "freeze_epochs"} == set(Recipe.__struct_fields__)
    train = main.get_command(click.Context(main), "train")
    assert train is not None
    names = {name for parameter in train.params for name in parameter.opts}
    assert {f"--{field.replace('_', '-')}" for field in (*Recipe.__struct_fields__, "recipe")} <= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "finetune"}, "recipe finetune: training starts from fresh weights: give --pretrained or"),
        ({"freeze_epochs": 2}, "freeze_epochs 2: training starts from fresh weights"),
        ({"base_momentum": 0.96}, r"base_momentum is 0\.96, above max_momentum, which is 0\.95"),
        ({"recipe": "photo"}, "recipe photo: is for photographs, but the images of digits have 8 pixels"),
        ({"trivial_augment": True}, "trivial_augment: is for photographs"),
        ({"batch_size": 2000}, "batch_size is 2000, but digits has 1438 training images"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(TrainConfig(**options), DIGITS)


@pytest.mark.parametrize("field", ["crop_padding", "affine_degrees", "affine_scale"])
def test_small_images_augmentation_is_refused_on_photographs(field: str, photographs: Dataset) -> None:
    with pytest.raises(UsageError, match=f"{field}: is for images below 64 pixels"):
        resolve(TrainConfig(**{field: 0.1}), photographs)


def test_more_frozen_epochs_than_epochs_are_refused(digits_run: Path) -> None:
    with pytest.raises(UsageError, match="freeze_epochs is 3, but there are 2 epochs"):
        resolve(TrainConfig(weights=str(digits_run), epochs=2, freeze_epochs=3), DIGITS)


def test_a_recipe_has_a_name_that_is_known() -> None:
    with pytest.raises(UsageError, match=r"recipe is 'fotos' \(did you mean 'photo'\?\); expected one of"):
        TrainConfig(recipe="fotos")
    assert RECIPES == ("notebook", "fast", "photo", "finetune")


def test_fast_learns_digits(tmp_path: Path) -> None:
    record = fit(TrainConfig(recipe="fast", device="cpu"), tmp_path / "run").record
    assert record.accuracy > 0.95
    assert (record.config.recipe, record.epochs) == ("fast", 30)
