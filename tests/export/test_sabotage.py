"""What would make the deployed model decide otherwise, done on purpose: each is caught, and by the gate that should."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from shipnet.export import ExportConfig
from shipnet.export.assemble import list_files, seal
from shipnet.export.build import export_source
from shipnet.export.onnx_graph import to_onnx
from shipnet.export.source import Source, from_run
from shipnet.runtime import Bundle, BundleError, ParityError
from shipnet.runtime.manifest import Manifest, decode_manifest
from shipnet.runtime.verify import verify
from shipnet.train import DataConfig, TrainConfig, fit, load_data

CONFIG = ExportConfig(interop=False, batch_sizes=(1, 2, 7))


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured digits as JPEG files of 40 x 48 pixels, whose channels have statistics of their own."""
    data = load_data(DataConfig())
    root = tmp_path_factory.mktemp("coloured") / "data"
    for label in range(3):
        folder = root / data.labels[label]
        folder.mkdir(parents=True)
        for index in np.flatnonzero(data.train.labels == label)[:40]:
            grey = np.asarray(data.train.sources[index])[:, :, 0]
            colours = np.stack((grey, grey // 3 + 60, 255 - grey // 2), axis=2)
            image = Image.fromarray(colours).resize((40, 48), Image.Resampling.BICUBIC)
            image.save(folder / f"{index}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def source(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A network trained on them."""
    config = TrainConfig(
        data=DataConfig(data=str(photos), image_size=16, val_fraction=0.4),
        arch="conv_cnn",
        epochs=6,
        batch_size=16,
        device="cpu",
    )
    run = fit(config, tmp_path_factory.mktemp("coloured_run") / "run")
    return from_run(run, CONFIG, dataset=None, on_progress=quiet)


@pytest.fixture(scope="module")
def sealed(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest bundle of it."""
    out = tmp_path_factory.mktemp("coloured_bundle") / "bundle"
    export_source(source, CONFIG, out=out, on_progress=quiet)
    assert verify(out).passed
    return out


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    """The honest bundle, to be sabotaged."""
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


def reseal(folder: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """Makes every hash right again after a change, as somebody who means it would."""
    manifest = decode_manifest((folder / "manifest.json").read_bytes(), where="manifest.json")
    seal(folder, change(msgspec.structs.replace(manifest, files=list_files(folder))))


# --- before the bundle is sealed: the exported graph is not the validated network ---


def swap_statistics(model: nn.Module) -> nn.Module:
    """Mean and std of red and blue change places."""
    for buffer in (model.pixel_mean, model.pixel_std):
        buffer.copy_(buffer.flip(1))
    return model


class Backwards(nn.Module):
    """BGR for RGB."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net, self.pixel_mean, self.pixel_std = model.net, model.pixel_mean, model.pixel_std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.to(torch.float32).permute(0, 3, 1, 2).contiguous().flip(1)
        return self.net((x - self.pixel_mean) / self.pixel_std)


class Softmax(nn.Module):
    """Scores for logits: the runtime would take a softmax of a softmax."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).softmax(dim=1)


class Permuted(nn.Module):
    """Logits in another order than the labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).roll(1, dims=1)


class BatchStatistics(nn.Module):
    """A batch norm left in training mode: it normalises by the batch that happens to be there."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        weight, bias = (part.view(1, -1, 1, 1) for part in (self.norm.weight, self.norm.bias))
        return (x - mean) * torch.rsqrt(var + self.norm.eps) * weight + bias


def batch_norm_training(model: nn.Module) -> nn.Module:
    model.net.conv2[2] = BatchStatistics(model.net.conv2[2])
    return model


def scale_one_layer(model: nn.Module) -> nn.Module:
    """One layer's weights by 1.01."""
    model.net.conv3[0].weight.mul_(1.01)
    return model


@pytest.mark.parametrize(
    "sabotage",
    [swap_statistics, Backwards, Softmax, Permuted, scale_one_layer, batch_norm_training],
    ids=[
        "mean-and-std-swapped",
        "bgr",
        "softmax-twice",
        "logits-permuted",
        "one-layer-1.01",
        "batch-norm-training",
    ],
)
def test_a_graph_that_is_another_network_is_no_bundle(
    source: Source, tmp_path: Path, sabotage: Callable[[nn.Module], nn.Module]
) -> None:
    assert source.network is not None
    with torch.no_grad():
        changed = sabotage(copy.deepcopy(source.network))
    sabotaged = dataclasses.replace(
        source, to_onnx=lambda images, metadata: to_onnx(changed, images, metadata=metadata)
    )
    with pytest.raises(ParityError, match=r"no bundle was written|breaks the bundle's rules"):
        export_source(sabotaged, CONFIG, out=tmp_path / "bundle", on_progress=quiet)
    assert not (tmp_path / "bundle").exists()


# --- after it was sealed, by somebody who mends the hashes too: the probes answer otherwise ---


def failed(folder: Path) -> set[str]:
    """The checks that do not hold."""
    return {check.name for check in verify(folder, device="cpu").checks if check.result == "failed"}


def change_spec(folder: Path, **changes: object) -> None:
    reseal(
        folder,
        lambda manifest: msgspec.structs.replace(
            manifest, preprocess=msgspec.structs.replace(manifest.preprocess, **changes)
        ),
    )


@pytest.mark.parametrize(
    "changes",
    [{"interpolation": "nearest"}, {"exif_orientation": False}],
    ids=["resize-without-antialiasing", "exif-ignored"],
)
def test_other_pixels_are_the_decoders_fault(bundle: Path, changes: dict[str, object]) -> None:
    change_spec(bundle, **changes)
    assert failed(bundle) == {"pixels"}


def test_a_scaled_layer_is_the_engines_fault(bundle: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = bundle / "model" / "fp32.onnx"
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
    values: NDArray[np.float32] = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    reseal(bundle)
    assert failed(bundle) == {"fp32 engine"}


def test_permuted_labels_contradict_the_probes(bundle: Path) -> None:
    reseal(bundle, lambda manifest: msgspec.structs.replace(manifest, labels=manifest.labels[::-1]))
    with pytest.raises(BundleError, match="label"):
        verify(bundle)


# --- without mending the hashes: the reader refuses ---


def test_one_byte_flipped_in_any_file_is_named(bundle: Path) -> None:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(BundleError, match=r"manifest\.(json|sha256)|" + path.name):
            Bundle.open(bundle)
        path.write_bytes(data)
    Bundle.open(bundle)


@pytest.mark.parametrize("name", ["extra.txt", "model/other.onnx", ".gitignore", "evidence/.hidden"])
def test_an_added_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"extra file {name}"):
        Bundle.open(bundle)
