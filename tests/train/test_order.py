"""An epoch's order: every image once, or every class as often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shipnet.train import DataConfig, TrainConfig, load_data
from shipnet.train.feeds import open_feed
from shipnet.train.order import epoch_order
from shipnet.train.recipe import resolve

MakeFolder = Callable[..., Path]
RARE = np.repeat(np.array([0, 1, 2]), [900, 90, 10])


def order(*, balance: bool, seed: int = 0) -> torch.Tensor:
    return epoch_order(RARE, torch.Generator().manual_seed(seed), balance=balance)


def test_every_image_comes_once() -> None:
    assert torch.equal(order(balance=False).sort().values, torch.arange(1000))
    assert not torch.equal(order(balance=False), order(balance=False, seed=1))


def test_balance_shows_every_class_as_often() -> None:
    shown = np.bincount(RARE[order(balance=True).numpy()])
    assert shown.sum() == 1000
    assert np.all(np.abs(shown - 333) < 60)  # 4 standard deviations of a binomial of 1,000 draws
    assert len(set(order(balance=True)[:400].tolist())) > 200
    assert torch.equal(order(balance=True), order(balance=True))


def test_both_feeds_balance(make_folder: MakeFolder) -> None:
    root = make_folder({"often": 100, "rare": 12}, size=(90, 70), mode="RGB")
    for image_size in (8, 64):
        data = load_data(DataConfig(data=str(root), image_size=image_size))
        shares = []
        for balance in (False, True):
            config = resolve(TrainConfig(balance=balance, workers=0, batch_size=30), data)
            opened = open_feed(data, config, torch.device("cpu"))
            shown = torch.cat([labels for epoch in (1, 2) for _, labels in opened.train(epoch)])
            shares.append((shown == 1).float().mean().item())
        assert shares[0] < 0.2
        assert 0.35 < shares[1] < 0.65
