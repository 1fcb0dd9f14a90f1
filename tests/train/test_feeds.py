"""Batches: the same whoever decodes them, complete, and honest about errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shipnet.runtime import ImageError
from shipnet.train import DataConfig, Dataset, TrainConfig, load_data, pixels
from shipnet.train.feeds import FileFeed, MemoryFeed, open_feed
from shipnet.train.recipe import resolve

MakeFolder = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def photographs(make_folder: MakeFolder) -> Dataset:
    root = make_folder({"cat": 16, "dog": 14}, size=(90, 70), mode="RGB")
    return load_data(DataConfig(data=str(root), image_size=64))


def feed(data: Dataset, **options: object) -> MemoryFeed | FileFeed:
    opened = open_feed(data, resolve(TrainConfig(**options), data), CPU)
    assert isinstance(opened, MemoryFeed if data.in_memory else FileFeed)
    return opened


def everything(batches: object) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_memory_gives_every_validation_image_once_in_order() -> None:
    data = load_data(DataConfig())
    images, labels = everything(feed(data).valid())
    assert torch.equal(images, torch.from_numpy(pixels(data.valid, data.spec)))
    assert torch.equal(labels, torch.from_numpy(data.valid.labels))


def test_files_give_every_validation_image_once_in_order(photographs: Dataset) -> None:
    images, labels = everything(feed(photographs, workers=0, batch_size=5).valid())
    assert torch.equal(images, torch.from_numpy(pixels(photographs.valid, photographs.spec)))
    assert torch.equal(labels, torch.from_numpy(photographs.valid.labels))


def test_an_epoch_has_steps_of_equal_size_and_no_image_twice() -> None:
    data = load_data(DataConfig())
    opened = feed(data, batch_size=100)
    batches = list(opened.train(1))
    assert len(batches) == opened.steps == 14
    assert {len(labels) for _, labels in batches} == {100}
    assert batches[0][0].dtype == torch.uint8
    _, labels = everything(batches)
    assert torch.all(torch.bincount(labels) <= torch.bincount(torch.from_numpy(data.train.labels)))


def test_an_epoch_is_decided_by_seed_and_number() -> None:
    data = load_data(DataConfig())
    first = everything(feed(data).train(2))[0]
    opened = feed(data)
    list(opened.train(1))
    assert torch.equal(everything(opened.train(2))[0], first)
    assert not torch.equal(everything(opened.train(3))[0], first)
    assert not torch.equal(everything(feed(data, seed=1).train(2))[0], first)


def test_photographs_are_the_same_whoever_decodes_them(photographs: Dataset) -> None:
    alone = feed(photographs, workers=0, batch_size=4)
    helped = feed(photographs, workers=2, batch_size=4)
    for epoch in (1, 2):
        for mine, theirs in (
            (everything(alone.train(epoch)), everything(helped.train(epoch))),
            (everything(alone.valid()), everything(helped.valid())),
        ):
            assert torch.equal(mine[0], theirs[0])
            assert torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_named_as_it_was_found(photographs: Dataset, workers: int) -> None:
    bad = photographs.train[3]
    assert isinstance(bad, Path)
    bad.write_bytes(bad.read_bytes()[:-80])
    with pytest.raises(ImageError, match=bad.name) as caught:
        list(feed(photographs, workers=workers, batch_size=4).train(1))
    assert "Traceback" not in str(caught.value)
