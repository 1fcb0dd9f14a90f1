"""Networks of real size on photographs: torchvision's ResNets, by their weights and as torch's exporters write them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.transforms import CenterCrop, Compose, Resize

from shipnet.export import ExportConfig, ForeignConfig, export_onnx, export_weights
from shipnet.runtime import Bundle, Classifier, DataError

pytestmark = pytest.mark.slow
LABELS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
EACH = 6
SIZES = (1, 2, 7)  # of batches


@pytest.fixture(scope="module")
def val(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some photographs of each flower."""
    root = tmp_path_factory.mktemp("flowers") / "val"
    for label in LABELS:
        (root / label).mkdir(parents=True)
        for path in sorted((real_data / "flowers" / "val" / label).iterdir())[:EACH]:
            shutil.copy(path, root / label)
    return root


def config(val: Path, **fields: object) -> ForeignConfig:
    return ForeignConfig(labels=LABELS, val=str(val), **fields)  # type: ignore[arg-type]


def by_torchvision(net: nn.Module, pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Logits of uint8 (N, 224, 224, 3), normalised by numpy."""
    normalised = (pixels / 255.0 - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225))
    with torch.inference_mode():
        found: np.ndarray = net(torch.from_numpy(normalised.astype(np.float32).transpose(0, 3, 1, 2))).numpy()  # type: ignore[type-arg]
    return found


def holds(bundle: Bundle, net: nn.Module, val: Path) -> None:
    """The bundle gives torchvision's logits on torchvision's crops; its own crops differ by a level of rounding."""
    files = [path for label in LABELS for path in sorted((val / label).iterdir())[:2]]
    crop = Compose([Resize(256), CenterCrop(224)])
    pixels = np.stack([np.asarray(crop(Image.open(path).convert("RGB"))) for path in files])
    expected = by_torchvision(net, pixels)
    scale = np.abs(expected).max()
    with Classifier.load(bundle.path, device="cpu") as classifier:
        assert np.abs(classifier.logits(pixels) - expected).max() < 1e-4 * scale
        given = [item.label for item in classifier.predict(files)]
    margin = np.diff(np.sort(expected, axis=1)[:, -2:])[:, 0]
    clear = margin > 0.02 * scale
    assert [given[i] for i in np.flatnonzero(clear)] == [LABELS[k] for k in expected[clear].argmax(1)]
    parity = bundle.manifest.variant("fp32").parity
    assert (parity.images, parity.flips) == (EACH * len(LABELS), 0)


def test_a_resnet50_that_guesses_ships_only_where_that_is_accepted(val: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = resnet50(num_classes=5).eval()
    path = tmp_path / "flowers.pth"
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}, "epoch": 1},
        path,
    )
    out = tmp_path / "bundle"
    with pytest.raises(DataError, match=r"flowers\.pth: .*To ship it all the same, give --accept-accuracy"):
        export_weights(path, config(val, arch="resnet50"), out=out)
    assert not out.exists()
    notes: list[str] = []
    accepted = config(val, arch="resnet50", accept_accuracy=True)
    bundle = export_weights(
        path, accepted, config=ExportConfig(batch_sizes=SIZES), out=out, on_note=notes.append
    )
    assert any(note.startswith("WARNING, accepted by --accept-accuracy: ") for note in notes)
    assert {item.format for item in bundle.manifest.interop} == {"torchscript", "pt2", "safetensors"}
    holds(bundle, net, val)


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_resnet18_of_either_of_torchs_exporters_ships(val: Path, tmp_path: Path, dynamo: bool) -> None:
    torch.manual_seed(1)
    net = resnet18(num_classes=5).eval()
    path, example = tmp_path / "flowers.onnx", (torch.rand(2, 3, 224, 224),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(net, example, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"x": {0: "batch"}, "y": {0: "batch"}}
            names = {"input_names": ["x"], "output_names": ["y"]}
            torch.onnx.export(net, example, path, dynamo=False, dynamic_axes=axes, **names)
    assert (tmp_path / "flowers.onnx.data").is_file() is dynamo
    bundle = export_onnx(
        path,
        config(val, accept_accuracy=True),
        config=ExportConfig(batch_sizes=SIZES),
        out=tmp_path / "bundle",
    )
    holds(bundle, net, val)
    assert bundle.manifest.provenance.parameters in range(11_160_000, 11_190_000)
