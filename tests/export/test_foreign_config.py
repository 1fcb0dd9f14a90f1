"""What must be told of a network that was not trained here: labels, preprocessing; and options that contradict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torchvision.models import ResNet50_Weights

from shipnet.cli import main
from shipnet.export import ForeignConfig, read_labels
from shipnet.export.foreign_preprocess import IMAGENET, Input, choose_preprocess, torchvision_preset
from shipnet.runtime import DataError, PreprocessSpec, UsageError
from shipnet.runtime.manifest import Normalization

LABELS = ("cat", "dog")


def config(**fields: Any) -> ForeignConfig:
    return ForeignConfig(**{"labels": LABELS, "val": "photos/val", **fields})


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.txt", "cat\ndog\n", ("cat", "dog")),
        (
            "a.txt",
            "\ufeffsnow leopard\r\n  Dackel \r\nчерепаха\r\n\r\n\n",
            ("snow leopard", "Dackel", "черепаха"),
        ),
        ("a.json", '["dog", "cat"]', ("dog", "cat")),
        ("a.JSON", '\n["2", "10"]\n', ("2", "10")),
    ],
)
def test_labels_keep_the_order_of_the_file(
    tmp_path: Path, name: str, text: str, labels: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_labels(path) == labels


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"cat\n\ndog\n", r"a\.txt: label 2 is empty: every output of the network needs a name"),
        ("a.txt", b"cat\ndog\nbird\ndog\n", "'dog' stands as label 2 and 4: a label names one output only"),
        ("a.txt", b"a\na\nb\nb\n", "'a' stands as label 1 and 2, and 1 more stand twice"),
        ("a.txt", b"cat\n", r"1 label\(s\); expected two or more, one for each output of the network"),
        ("a.txt", b"", r"0 label\(s\)"),
        ("a.txt", b"cat\nd\xffg\n", r"is not UTF-8 text \(invalid start byte\): save the labels as UTF-8"),
        ("a.txt", b"cat\nd\0g\n", r"label 2 \('d\\x00g'\) cannot be printed"),
        (
            "a.json",
            b'{"0": "cat", "1": "dog"}',
            "holds an object; expected a list in the order of the network's outp",
        ),
        ("a.json", b'["cat", 1]', "holds no list of strings; expected a list"),
        ("a.json", b'["cat", ', r"is no JSON \(.*\): expected a list of labels"),
    ],
)
def test_a_file_that_names_no_outputs_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labels(path)


def test_a_file_of_labels_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gone\.txt: No such file or directory; expected the labels, one a line"
    ):
        read_labels(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="Is a directory; expected the labels"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"labels": ("cat", "cat")}, DataError, "labels: 'cat' stands as label 1 and 2"),
        ({"labels": "cat"}, UsageError, "labels is 'cat'; expected a tuple"),
        ({"labels": ["cat", "dog"]}, UsageError, "labels is .*; expected a tuple"),
        ({"arch": "resnet-50"}, UsageError, r"arch is 'resnet-50' \(did you mean 'resnet50'\?\).*comes as an ONNX"),
        ({"image_size": 4}, UsageError, "image_size is 4; expected a whole number from 8 to 4096"),
        ({"resize": "squash"}, UsageError, "resize is 'squash'; expected one of: fit, shorter_side_crop"),
        ({"interpolation": "cubic"}, UsageError, "interpolation is 'cubic'.*expected one of"),
        ({"layout": "CHWN"}, UsageError, "layout is 'CHWN'.*expected one of: NCHW, NHWC"),
        ({"channels": 4}, UsageError, "channels is 4; expected 1 for grey or 3 for RGB"),
        ({"mean": (0.5,)}, UsageError, "mean and std go together: give both, or neither"),
        ({"mean": 0.5, "std": 0.5}, UsageError, r"mean is 0\.5; expected a tuple"),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, UsageError, "mean has 2 values; expected one, or one per channel"),
        ({"mean": (123.675,), "std": (58.0,)}, UsageError, r"mean is 123\.675; .* divide by 255, as in 123\.675/255"),
        ({"mean": (0.5,), "std": (58.4,)}, UsageError, r"std is 58\.4; .* in units of \[0, 1\]: divide by 255"),
        ({"mean": (0.5,), "std": (0.0,)}, UsageError, "std is 0.0; expected a number from 0.0001 to 10"),
        ({"mean": (float("nan"),), "std": (1.0,)}, UsageError, "mean is nan; expected a number from -10 to 10"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_meant_are_refused(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        config(**fields)


PHOTOGRAPHS = Input(channels=3)
SMALL_GREY = Input(channels=1, photographs=False)


def test_nothing_told_is_imagenets_convention() -> None:
    spec, normalization, told = choose_preprocess(config(), PHOTOGRAPHS)
    assert spec == PreprocessSpec(
        height=224,
        width=224,
        channels=3,
        resize="shorter_side_crop",
        resize_size=256,
        interpolation="bilinear",
    )
    assert normalization == Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert told == (
        "preprocessing: 224 x 224 RGB (ImageNet's convention); shorter side to 256, then the centre (ImageNet's "
        "convention); bilinear (ImageNet's convention); mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225 (ImageNet's "
        "convention)"
    )


def test_torchvisions_own_weights_bring_torchvisions_preprocessing() -> None:
    """As the library itself states it, for both generations of weights, which differ in the margin."""
    for entry, resize in ((ResNet50_Weights.IMAGENET1K_V1, 256), (ResNet50_Weights.IMAGENET1K_V2, 232)):
        own = entry.transforms()
        assert own.resize_size == [resize]
        spec, normalization, told = choose_preprocess(config(), PHOTOGRAPHS, torchvision_preset(entry))
        assert (spec.height, spec.resize_size, spec.interpolation) == (own.crop_size[0], resize, "bilinear")
        assert normalization == Normalization(mean=tuple(own.mean), std=tuple(own.std))
        assert f"torchvision's for {entry}" in told


def test_what_is_told_stands_before_every_default() -> None:
    asked = config(
        image_size=128, resize_size=140, interpolation="bicubic", mean=(0.5,), std=(0.25, 0.5, 0.75)
    )
    spec, normalization, told = choose_preprocess(asked, PHOTOGRAPHS)
    assert (spec.height, spec.width, spec.resize_size, spec.interpolation) == (128, 128, 140, "bicubic")
    assert normalization == Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.75))
    assert told.count("(given)") == 4
    assert "convention" not in told


def test_the_margin_grows_with_the_side() -> None:
    assert choose_preprocess(config(image_size=448), PHOTOGRAPHS)[0].resize_size == 512
    assert choose_preprocess(config(), Input(channels=3, size=(299, 200)))[0].resize_size == round(
        299 * 256 / 224
    )


def test_a_graph_that_takes_bytes_is_not_normalised() -> None:
    spec, normalization, told = choose_preprocess(
        config(resize="fit"), Input(channels=3, size=(64, 96), normalized=False)
    )
    assert (spec.height, spec.width, spec.resize, spec.resize_size) == (64, 96, "fit", None)
    assert normalization is None
    assert told.endswith("the graph takes uint8 pixels and normalises by itself")


@pytest.mark.parametrize(
    ("fields", "network", "message"),
    [
        ({}, SMALL_GREY, "no image size by convention: give --image-size"),
        ({"image_size": 28}, SMALL_GREY, "there is no convention for grey images: give --mean and --std"),
        (
            {"image_size": 28},
            Input(channels=3, photographs=False),
            "no convention for networks of small images",
        ),
        (
            {"image_size": 200},
            Input(channels=3, size=(224, 224)),
            "image_size is 200, but the graph takes 224 x 224",
        ),
        (
            {"resize": "fit", "resize_size": 256},
            PHOTOGRAPHS,
            "resize_size is 256, but resize is fit, which has none",
        ),
        ({"resize_size": 200}, PHOTOGRAPHS, "preprocessing: resize_size is 200, expected 224 or more"),
        (
            {"mean": (0.5,), "std": (0.5,)},
            Input(channels=3, normalized=False),
            "the graph takes uint8 pixels, so it normalises by itself: leave them out",
        ),
        (
            {"image_size": 28, "mean": (0.5,), "std": (0.1, 0.2, 0.3)},
            SMALL_GREY,
            r"mean and std have 3 values, but the network has 1 channel\(s\)",
        ),
    ],
)
def test_preprocessing_that_contradicts_or_has_no_default_is_refused(
    fields: dict[str, Any], network: Input, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_preprocess(config(**fields), network, IMAGENET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "expected one of RUN, --weights and --onnx, found none: give the network that is to be exported",
        ),
        (["run", "--onnx", "a.onnx"], "expected one of RUN, --weights and --onnx, found RUN and --onnx"),
        (["run", "--labels", "l.txt"], "--labels is for --weights and --onnx; a run knows it all"),
        (["run", "--mean", "0", "--strict-data"], "--strict-data, --mean are for --weights and --onnx"),
        (["--weights", "w.pth"], "--weights needs --arch, --labels, --val, too"),
        (["--onnx", "a.onnx", "--val", "v"], "--onnx needs --labels, too"),
        (["--onnx", "a.onnx", "--labels", "gone.txt", "--val", "v"], "gone.txt: No such file or directory"),
        (
            ["--onnx", "a.onnx", "--labels", "labels.txt", "--val", "v", "--mean", "x,1", "--std", "1"],
            "mean is 'x,1'; expected numbers such as 0.485 or 1/255, separated by commas",
        ),
        (
            ["--onnx", "a.onnx", "--labels", "labels.txt", "--val", "v", "--mean", "0", "--std", "1/0"],
            "std is '1/0'; expected numbers such as",
        ),
        (
            ["--onnx", "a.onnx", "--labels", "labels.txt", "--val", "v", "--data", "photos"],
            "--data and --data-root are for a run; --val names the images of --weights and --onnx",
        ),
        (
            ["--onnx", "a.onnx", "--labels", "labels.txt", "--val", "v", "--no-interop"],
            "--no-interop: an ONNX graph is never written for PyTorch's loaders: leave it out",
        ),
        (
            ["--onnx", "a.onnx", "--labels", "labels.txt", "--val", "v"],
            "a.onnx: no such file; expected an ONNX file",
        ),
    ],
)
def test_the_command_says_what_is_missing_or_contradicts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("cat\ndog\n")
    done = CliRunner().invoke(main, ["export", *arguments])
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]
