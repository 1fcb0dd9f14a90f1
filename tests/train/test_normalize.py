"""From pixels to logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from shipnet.train import DataConfig, Deployable, load_data
from shipnet.train.channel_stats import measure, of_pixels


def test_normalisation_is_that_of_torchvision() -> None:
    from torchvision.transforms.v2 import functional

    images = torch.randint(0, 256, (4, 6, 5, 3), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = functional.normalize(images.permute(0, 3, 1, 2).float() / 255, list(mean), list(std))
    torch.testing.assert_close(Deployable(nn.Identity(), mean, std)(images), expected, rtol=1e-5, atol=1e-5)


def test_the_cast_is_the_inputs_only_consumer() -> None:
    model = Deployable(nn.Flatten(), (0.1,), (0.3,)).eval()
    program = torch.export.export(model, (torch.zeros(2, 8, 8, 1, dtype=torch.uint8),))
    (pixels,) = (node for node in program.graph.nodes if node.name == "images")
    (cast,) = (user for user in pixels.users if "assert" not in str(user.target))
    assert "to" in str(cast.target)
    (transpose,) = (user for user in cast.users if "assert" not in str(user.target))
    assert "permute" in str(transpose.target)


def test_statistics_are_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 9, 3), dtype=np.uint8)
    found = of_pixels(images)
    scaled = images.astype(np.float64) / 255
    assert found.mean == pytest.approx(scaled.mean((0, 1, 2)), abs=1e-6)
    assert found.std == pytest.approx(scaled.std((0, 1, 2)), abs=1e-6)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    assert of_pixels(np.full((2, 4, 4, 1), 255, np.uint8)).std == (0.001,)


def test_statistics_are_of_the_training_images_alone() -> None:
    data = load_data(DataConfig())
    found = measure(data, seed=0)
    assert found.mean[0] == pytest.approx(data.train.sources.mean() / 255, abs=1e-6)
