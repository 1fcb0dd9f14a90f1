"""Weights of one's own become a bundle that decides as they do in PyTorch, or are refused with what is missing."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from foreign_nets import LABELS
from shipnet.cli import main
from shipnet.export import ExportConfig, ForeignConfig, export_weights
from shipnet.export.torch_formats import open_pt2, open_torchscript
from shipnet.runtime import Classifier, DataError, UsageError
from shipnet.runtime.manifest import Normalization
from shipnet.runtime.verify import verify
from shipnet.train import Run, load_run
from shipnet.train.architectures import build
from shipnet.train.weights import WeightsError

State = dict[str, Tensor]
MakeConfig = Callable[..., ForeignConfig]


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load_run(digits_run)


@pytest.fixture(scope="module")
def state(run: Run) -> State:
    """Weights that know digits, without anything that says so."""
    return load_file(run.weights_path)


@pytest.fixture
def config(run: Run, digit_files: Path) -> MakeConfig:
    """What must be told of them."""

    def make(**changes: object) -> ForeignConfig:
        own: dict[str, Any] = {"labels": LABELS, "val": str(digit_files), "arch": "conv_cnn", "image_size": 8}
        own |= {"mean": run.record.mean, "std": run.record.std}
        return ForeignConfig(**{**own, **changes})

    return make


def by_hand(state: State, run: Run, pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Logits of uint8 (N, 8, 8) by PyTorch, normalised by numpy."""
    net = build("conv_cnn", channels=1, num_classes=10, image_size=8).eval()
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    normalised = ((pixels / 255.0 - run.record.mean[0]) / run.record.std[0]).astype(np.float32)
    with torch.inference_mode():
        found: np.ndarray = net(torch.from_numpy(normalised[:, None])).numpy()  # type: ignore[type-arg]
    return found


def pixels_of(folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))])


def test_every_format_of_the_bundle_gives_the_weights_logits(
    run: Run, state: State, config: MakeConfig, digit_files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pth"
    torch.save(state, path)
    notes: list[str] = []
    bundle = export_weights(path, config(), out=tmp_path / "bundle", on_note=notes.append)
    pixels = pixels_of(digit_files)
    expected = by_hand(state, run, pixels)
    with Classifier.load(bundle.path, device="cpu") as classifier:
        openers = [
            classifier.logits,
            open_torchscript(bundle.path / "interop" / "model.torchscript.pt"),
            open_pt2(bundle.path / "interop" / "model.pt2"),
        ]
        for logits in openers:
            for count in (1, 3, 50):
                assert np.allclose(logits(pixels[:count, ..., None]), expected[:count], rtol=1e-4, atol=1e-4)
        given = [item.label for item in classifier.predict(sorted(digit_files.rglob("*.png")))]
    assert given == [LABELS[index] for index in expected.argmax(1)]
    shipped = load_file(bundle.path / "interop" / "weights.safetensors")
    assert all(torch.equal(shipped[name], tensor) for name, tensor in state.items())
    assert verify(bundle.path).passed
    manifest = bundle.manifest
    assert manifest.name == "mine"
    assert manifest.normalization == Normalization(mean=run.record.mean, std=run.record.std)
    assert (manifest.provenance.source, manifest.provenance.arch) == ("weights", "conv_cnn")
    assert manifest.provenance.parameters == run.record.parameters
    assert manifest.provenance.epochs is None
    parity = manifest.variant("fp32").parity
    assert (parity.images, parity.flips) == (50, 0)
    assert notes[0].startswith(
        "preprocessing: 8 x 8 grey (given); fit (small images); bilinear (ImageNet's convention)"
    )


def test_what_training_loops_put_around_weights_is_taken_off(
    run: Run, state: State, config: MakeConfig, digit_files: Path, tmp_path: Path
) -> None:
    """As DataParallel and torch.compile name them, in float64, without what old versions of torch had not."""
    wrapped = {
        f"module._orig_mod.{name}": tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, path)
    notes: list[str] = []
    bundle = export_weights(
        path, config(), config=ExportConfig(interop=False), out=tmp_path / "bundle", on_note=notes.append
    )
    assert "checkpoint.pt: takes 'state_dict', not epoch, optimizer" in notes
    assert "checkpoint.pt: takes 'module.' off the names of its tensors" in notes
    assert "checkpoint.pt: takes '_orig_mod.' off the names of its tensors" in notes
    assert "checkpoint.pt: holds float64 weights, which are validated and shipped as float32" in notes
    pixels = pixels_of(digit_files)
    with Classifier.load(bundle.path, device="cpu") as classifier:
        found = classifier.logits(pixels[..., None])
    assert np.allclose(found, by_hand(state, run, pixels), rtol=1e-4, atol=1e-4)


def refuse(path: Path | str, config: ForeignConfig, error: type[Exception], message: str, out: Path) -> None:
    """The export is refused, and nothing is left of it."""
    with pytest.raises(error, match=message):
        export_weights(path, config, out=out / "bundle")
    assert not (out / "bundle").exists()


class Stranger:
    """A pickle of it would call a function of its author's choice when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("/tmp/shipnet-ran-code-of-a-file"),)  # type: ignore[return-value]


def saved(content: object, folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            nn.Linear(2, 2),
            r"beside tensors it holds torch\.nn\.modules\.linear\.Linear, which is code, and code in a",
        ),
        (
            {"state_dict": {}, "args": Stranger()},
            "which is code, and code in a file is never run: save model",
        ),
        ([1, 2], "holds a list, not a state dict of names and tensors"),
        ({}, "holds an empty dict, not a state dict"),
        ({"model_ema": {"w": torch.ones(1)}}, r"holds a dict with 'model_ema' \(dict\), not a state dict"),
        (
            {"model": {"w": torch.ones(1)}, "model_ema": {"w": torch.ones(1)}},
            r"holds several networks \(model, model_ema\): save the state dict of the one that was validated alone",
        ),
        ({"conv1.weight": torch.full((2, 2), torch.nan)}, r"conv1\.weight holds numbers that are not finite"),
    ],
)
def test_a_file_that_holds_no_state_dict_is_refused(
    config: MakeConfig, tmp_path: Path, content: object, message: str
) -> None:
    refuse(saved(content, tmp_path), config(), WeightsError, rf"weights\.pth: .*{message}", tmp_path)
    assert not Path("/tmp/shipnet-ran-code-of-a-file").exists()


def test_files_of_other_kinds_are_refused(config: MakeConfig, digits_run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Stranger()))
    refuse(plain, config(), WeightsError, "no weights that can be read safely", tmp_path)
    assert not Path("/tmp/shipnet-ran-code-of-a-file").exists()
    script = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    refuse(script, config(), WeightsError, "no weights that can be read safely: .*TorchScript", tmp_path)
    graph = tmp_path / "net.onnx"
    graph.write_bytes(b"")
    refuse(graph, config(), UsageError, "is an ONNX file: give it with --onnx instead of --weights", tmp_path)
    refuse(
        digits_run, config(), UsageError, "is a folder; for a run of shipnet's:  shipnet export ", tmp_path
    )
    refuse(
        tmp_path / "gone.pth",
        config(),
        WeightsError,
        r"gone\.pth: no such file; expected safetensors",
        tmp_path,
    )
    cut = tmp_path / "cut.safetensors"
    whole = (digits_run / "weights.safetensors").read_bytes()
    cut.write_bytes(whole[:-100])
    refuse(cut, config(), WeightsError, r"cut\.safetensors: no weights that can be read safely", tmp_path)


def test_weights_of_another_network_are_refused(
    run: Run, state: State, config: MakeConfig, tmp_path: Path
) -> None:
    path = run.weights_path
    message = (
        "not the weights of this basic_cnn: .* is missing; .*: give the --arch that they were trained with"
    )
    refuse(path, config(arch="basic_cnn"), WeightsError, message, tmp_path)
    fewer = config(labels=LABELS[:7])
    message = (
        r"head\.0\.weight is for 10 classes, but there are 7 labels: give a label for each of the 10 outputs"
    )
    refuse(path, fewer, WeightsError, message, tmp_path)
    message = r"channels is 3, but weights\.safetensors begins with a convolution over 1: leave it out"
    refuse(path, config(channels=3), UsageError, message, tmp_path)
    four = {**state, "conv1.0.weight": torch.zeros(8, 4, 3, 3)}
    message = "begins with a convolution over 4 channels; expected 1 or 3"
    refuse(saved(four, tmp_path), config(), WeightsError, message, tmp_path)


def test_a_resnet_of_small_images_is_told_from_one_of_photographs(tmp_path: Path, digit_files: Path) -> None:
    small = build("resnet18", channels=3, num_classes=10, image_size=32)
    path = saved(small.state_dict(), tmp_path)
    foreign = ForeignConfig(labels=LABELS, val=str(digit_files), arch="resnet18")
    message = "they have the 3x3 stem of images below 64 pixels: give such an --image-size"
    refuse(path, foreign, WeightsError, message, tmp_path)
    foreign = ForeignConfig(labels=LABELS, val=str(digit_files), arch="resnet18", image_size=32)
    message = "no convention for networks of small images: give --mean and --std as they were trained with"
    refuse(path, foreign, UsageError, message, tmp_path)


def test_what_weights_do_not_say_must_be_told(run: Run, config: MakeConfig, tmp_path: Path) -> None:
    path = run.weights_path
    for changes, message in (
        ({"arch": None}, "arch: weights alone do not say which network they are for: give it"),
        ({"image_size": None}, "no image size by convention: give --image-size"),
        ({"mean": None, "std": None}, "there is no convention for grey images: give --mean and --std"),
        ({"layout": "NCHW"}, "layout: is for ONNX graphs; weights have none: leave it out"),
        ({"val": str(tmp_path / "gone")}, "gone: no such folder"),
    ):
        refuse(path, config(**changes), UsageError, message, tmp_path)


def test_finite_weights_that_overflow_are_refused(state: State, config: MakeConfig, tmp_path: Path) -> None:
    huge = {**state, "head.1.weight": torch.full((10,), 3e38)}
    message = r"weights\.pth: gives NaN or infinite logits on validation images"
    refuse(saved(huge, tmp_path), config(), DataError, message, tmp_path)


def test_labels_in_another_order_are_noticed(run: Run, config: MakeConfig, tmp_path: Path) -> None:
    moved = (*LABELS[1:], LABELS[0])
    message = r"weights\.safetensors: the labels seem to be in another order .*'1', is mostly '0'"
    refuse(run.weights_path, config(labels=moved), DataError, message, tmp_path)


@pytest.mark.parametrize(
    ("weights", "arch", "message"),
    [
        ("torchvision:DEFAULT", "conv_cnn", "torchvision has none for conv_cnn: choose a ResNet"),
        (
            "torchvision:IMAGENET",
            "resnet18",
            r"weights is 'IMAGENET'; expected one of: IMAGENET1K_V1, DEFAULT",
        ),
        (
            "ResNet50_Weights.DEFAULT",
            "resnet18",
            "torchvision's for resnet18 are ResNet18_Weights: give the other",
        ),
    ],
)
def test_torchvisions_entries_are_named(
    config: MakeConfig, tmp_path: Path, weights: str, arch: str, message: str
) -> None:
    refuse(weights, config(arch=arch), UsageError, message, tmp_path)


def test_another_file_under_torchvisions_name_is_refused(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"w": torch.ones(1)}, cached)
    for name in ("torchvision:IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"):
        message = r"is not the file that torchvision published as ResNet18_Weights\.IMAGENET1K_V1 \(its sha256 begins"
        refuse(name, config(arch="resnet18"), WeightsError, message, tmp_path)


def test_the_command_asks_for_what_is_missing(run: Run, digit_files: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]')
    asked = ["export", "--weights", str(run.weights_path)]
    done = CliRunner().invoke(main, asked)
    assert (done.exit_code, done.stderr) == (2, "Error: --weights needs --arch, --labels, --val, too\n")
    asked += ["--arch", "conv_cnn", "--labels", str(labels), "--val", str(digit_files), "--image-size", "8"]
    asked += [
        f"--mean={run.record.mean[0]}",
        f"--std={run.record.std[0]}",
        "--no-interop",
        "--probes",
        "synthetic",
    ]
    done = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "bundle"), "--name", "mine"])
    assert done.exit_code == 0, done.output
    assert "0 of 50 decisions differ from PyTorch" in done.stdout
    with Classifier.load(tmp_path / "bundle") as classifier:
        assert classifier.bundle.manifest.name == "mine"
