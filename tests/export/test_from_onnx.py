"""An ONNX file of any exporter becomes a bundle that decides as it does, or is refused with what is missing."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from foreign_nets import LABELS, MEAN, STD, LinearDigits
from shipnet.cli import main
from shipnet.export import ExportConfig, ForeignConfig, export_onnx
from shipnet.export.onnx_file import OnnxError
from shipnet.runtime import Bundle, BundleError, Classifier, DataError, ImageError, UsageError
from shipnet.runtime.manifest import Normalization
from shipnet.runtime.verify import verify
from shipnet.train import load_run

Save = Callable[[onnx.ModelProto], Path]
MakeConfig = Callable[..., ForeignConfig]
FLOAT = TensorProto.FLOAT


def pixels_of(folder: Path) -> tuple[list[Path], np.ndarray, list[str]]:  # type: ignore[type-arg]
    """Every image of a folder with its pixels and label, by Pillow alone."""
    paths = sorted(folder.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return paths, pixels, [path.parent.name for path in paths]


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "NCHW"), ("uint8", "NHWC")])
def test_the_bundle_gives_the_networks_logits(
    linear_digits: LinearDigits,
    save: Save,
    foreign: MakeConfig,
    coloured_files: Path,
    drawn: np.ndarray,  # type: ignore[type-arg]
    dtype: str,
    layout: str,
) -> None:
    path = save(linear_digits.graph(dtype=dtype, layout=layout))
    floats = dtype == "float32"
    config = foreign() if floats else foreign(mean=None, std=None)
    notes: list[str] = []
    bundle = export_onnx(path, config, out=path.parent / "bundle", on_note=notes.append)
    assert notes[0].startswith(
        f"net.onnx: takes {dtype} {layout}; preprocessing: 8 x 8 RGB (the graph's); fit (given)"
    )
    assert notes[-1].startswith("the network as it was given: accuracy ")
    files, pixels, _ = pixels_of(coloured_files)
    expected = linear_digits.logits(pixels)
    with Classifier.load(bundle.path, device="cpu") as classifier:
        for images in (pixels, pixels[:1], drawn):
            found = classifier.logits(images)
            assert np.allclose(found, linear_digits.logits(images), rtol=1e-4, atol=1e-4)
        given = [prediction.label for prediction in classifier.predict(files)]
    assert given == [LABELS[index] for index in expected.argmax(1)]
    assert verify(bundle.path).passed
    manifest = bundle.manifest
    assert manifest.name == "net"
    assert manifest.normalization == (Normalization(mean=MEAN, std=STD) if floats else None)
    assert not manifest.interop
    card = (bundle.path / "README.md").read_text()
    assert "An image classifier: an ONNX graph of another exporter with 1,93" in card
    parity = manifest.variant("fp32").parity
    assert (parity.images, parity.flips) == (40, 0)
    origin = manifest.provenance
    assert (origin.source, origin.arch, origin.parameters) == ("onnx", "onnx", 1930 if floats else 1936)
    assert origin.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (origin.validation_images, origin.train_images, origin.recipe, origin.seed) == (
        40,
        None,
        None,
        None,
    )


@pytest.fixture(scope="module")
def torch_digits(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey 8x8 convolutional network as torch's old exporter writes it, with batch norms and another opset."""
    run = load_run(digits_run)
    path = tmp_path_factory.mktemp("old") / "digits.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter is deprecated
        torch.onnx.export(
            run.network().net.eval(),
            (torch.rand(1, 1, 8, 8),),
            path,
            dynamo=False,
            opset_version=13,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    return path


def test_int8_is_made_of_what_torchs_old_exporter_wrote(
    torch_digits: Path, digits_run: Path, digit_files: Path, tmp_path: Path
) -> None:
    run = load_run(digits_run)
    foreign = ForeignConfig(
        labels=LABELS, val=str(digit_files), resize="fit", mean=run.record.mean, std=run.record.std
    )
    limits = {"max_flip_rate": (("int8-cpu", 0.2),), "max_top1_drop": (("int8-cpu", 0.2),)}
    config = ExportConfig(variants=("int8-cpu",), reduce_range=True, accept_uncertified=True, **limits)  # type: ignore[arg-type]
    bundle = export_onnx(torch_digits, foreign, config=config, out=tmp_path / "bundle")
    files, pixels, labels = pixels_of(digit_files)
    normalised = ((pixels / 255.0 - run.record.mean[0]) / run.record.std[0]).astype(np.float32)
    with torch.inference_mode():
        expected = run.network().net.eval()(torch.from_numpy(normalised[:, None])).numpy()
    with Classifier.load(bundle.path, device="cpu") as fp32:
        assert np.allclose(fp32.logits(pixels[..., None]), expected, rtol=1e-4, atol=1e-4)
    with Classifier.load(bundle.path, device="cpu", precision="int8-cpu") as int8:
        found = int8.predict(files)
    assert not np.array_equal(found[0].score, 1.0)
    assert np.mean([item.label == label for item, label in zip(found, labels, strict=True)]) > 0.8
    model = onnx.load(bundle.path / "model" / "int8-cpu.onnx")
    assert "DequantizeLinear" in {node.op_type for node in model.graph.node}
    assert bundle.manifest.variant("int8-cpu").quantization.calibration_images == 25  # type: ignore[union-attr]


def test_a_softmax_is_taken_off_and_that_is_told(
    linear_digits: LinearDigits,
    save: Save,
    foreign: MakeConfig,
    drawn: np.ndarray,  # type: ignore[type-arg]
) -> None:
    path = save(linear_digits.graph(end=("Softmax",)))
    notes: list[str] = []
    bundle = export_onnx(path, foreign(), out=path.parent / "bundle", on_note=notes.append)
    assert (
        "net.onnx: ends in Softmax, which is taken off: a bundle gives logits, and scores by its own" in notes
    )
    with Classifier.load(bundle.path, device="cpu") as classifier:
        assert np.allclose(classifier.logits(drawn), linear_digits.logits(drawn), rtol=1e-4, atol=1e-4)


def refuse(path: Path, config: ForeignConfig, error: type[Exception], message: str) -> None:
    """The export is refused, and nothing is left of it."""
    before = set(path.parent.iterdir())
    with pytest.raises(error, match=message):
        export_onnx(path, config, out=path.parent / "bundle")
    assert set(path.parent.iterdir()) == before


def test_another_number_of_outputs_than_labels_is_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    path = save(linear_digits.graph())
    message = (
        "has 10 outputs, but there are 9 labels: give a label for each of the 10 outputs, in their order"
    )
    refuse(path, foreign(labels=LABELS[:9]), OnnxError, message)


def changed(linear_digits: LinearDigits, *nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:  # type: ignore[type-arg]
    """The linear digits, whose logits are the value "raw", with further operators behind them."""
    model = linear_digits.graph()
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def test_one_number_for_two_classes_is_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    weight = np.ones((10, 1), np.float32)
    path = save(changed(linear_digits, helper.make_node("MatMul", ["raw", "last"], ["output"]), last=weight))
    message = "gives one number for each image, expected logits of 10 classes: .* needs two outputs, too"
    refuse(path, foreign(), OnnxError, message)


def test_probabilities_that_no_softmax_operator_made_are_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    nodes = [
        helper.make_node("Exp", ["raw"], ["exp"]),
        helper.make_node("ReduceSum", ["exp", "axis"], ["sum"]),
        helper.make_node("Div", ["exp", "sum"], ["output"]),
    ]
    path = save(changed(linear_digits, *nodes, axis=np.array([1])))
    refuse(path, foreign(), OnnxError, "its outputs are probabilities .*: export the network without")


def test_a_batch_size_that_is_written_into_the_graph_is_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    model = linear_digits.graph()
    flat = model.graph.node[0]
    flat.op_type, flat.input[1:] = "Reshape", ["shape"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 192]), "shape"))
    message = r"net\.onnx: cannot run on 2 images of 8 x 8: .*: export it with a dynamic batch axis"
    refuse(save(model), foreign(), OnnxError, message)


def test_rows_that_are_not_one_an_image_are_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    node = helper.make_node("Unsqueeze", ["raw", "axis"], ["output"])
    model = changed(linear_digits, node, axis=np.array([2]))
    message = r"1 image\(s\) of 8 x 8 give an output of shape \(1, 10, 1\), expected \(1, 10\)"
    refuse(save(model), foreign(), OnnxError, message)


def test_logits_that_are_no_numbers_are_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    path = save(changed(linear_digits, helper.make_node("Log", ["raw"], ["output"])))
    refuse(path, foreign(), DataError, "gives NaN or infinite logits on validation images")


def test_images_that_change_each_other_are_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    """Logits minus the batch's mean."""
    mean = helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1)
    path = save(changed(linear_digits, mean, helper.make_node("Sub", ["raw", "mean"], ["output"])))
    message = r"net\.onnx: gives an image other logits alone than beside others: export it for inference"
    refuse(path, foreign(), OnnxError, message)


def test_an_architecture_is_not_asked_of_a_graph(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    path = save(linear_digits.graph())
    refuse(path, foreign(arch="resnet18"), UsageError, "an ONNX graph is its own architecture: leave it out")
    refuse(path, foreign(image_size=9), UsageError, "image_size is 9, but the graph takes 8 x 8 pixels")


def test_what_stands_at_the_place_is_not_overwritten(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    path = save(linear_digits.graph())
    (path.parent / "bundle").mkdir()
    (path.parent / "bundle" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="something that is no bundle stands there"):
        export_onnx(path, foreign(), out=path.parent / "bundle")


def test_labels_in_another_order_are_noticed(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    path = save(linear_digits.graph())
    moved = LABELS[1:] + LABELS[:1]
    message = (
        r"net\.onnx: the labels seem to be in another order than the network's outputs: .* and in another order .*: "
        r"output 1, called '1', is mostly '0'; .*write the labels in the order of the outputs "
        "To ship it all the same, give --accept-accuracy"
    )
    refuse(path, foreign(labels=moved), DataError, message)
    notes: list[str] = []
    out = path.parent / "bundle"
    bundle = export_onnx(path, foreign(labels=moved, accept_accuracy=True), out=out, on_note=notes.append)
    assert bundle.manifest.labels == moved
    assert any(note.startswith("WARNING, accepted by --accept-accuracy: the labels seem") for note in notes)
    [doubt] = bundle.manifest.provenance.doubts
    assert doubt.startswith("the labels seem to be in another order")
    assert f"**Accepted when it was made**: {doubt}" in bundle.read("README.md").decode()
    assert "Accepted by --accept-accuracy" in (out.parent / "export-report.html").read_text()
    printed = CliRunner().invoke(main, ["inspect", str(out)], catch_exceptions=False).output
    assert "accepted" in printed and "the labels seem" in printed


def test_a_network_that_guesses_is_refused_unless_that_is_accepted(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig
) -> None:
    noise = np.random.default_rng(5)
    model = LinearDigits(
        noise.normal(size=linear_digits.weight.shape).astype(np.float32), linear_digits.bias
    ).graph()
    message = (
        r"cannot be told from guessing among 10 labels \(10\.0%\): .* To ship it .*, give --accept-accuracy"
    )
    refuse(save(model), foreign(), DataError, message)
    constant = LinearDigits(linear_digits.weight * 0, linear_digits.bias + np.eye(10, dtype=np.float32)[3])
    refuse(
        save(constant.graph()), foreign(), DataError, "gives every one of 20 images the label '3': are pre"
    )


def test_damaged_images_are_left_out_and_counted(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig, coloured_files: Path, tmp_path: Path
) -> None:
    val = copy_of(coloured_files, tmp_path / "val")
    victims = sorted((val / "3").iterdir())
    victims[0].write_bytes(b"")
    whole = victims[1].read_bytes()
    victims[1].write_bytes(whole[: len(whole) - 40])  # its header is sound
    path = save(linear_digits.graph())
    notes: list[str] = []
    bundle = export_onnx(path, foreign(val=str(val)), out=tmp_path / "bundle", on_note=notes.append)
    origin = bundle.manifest.provenance
    assert (origin.validation_images, origin.unreadable_images) == (38, 2)
    left_out = [note for note in notes if "left out: " in note]
    assert len(left_out) == 2
    assert all(any(victim.name in note for note in left_out) for victim in victims[:2])
    strict = foreign(val=str(val), strict=True)
    with pytest.raises(ImageError, match=r"is empty \(0 bytes\)"):
        export_onnx(path, strict, out=tmp_path / "other")
    victims[0].unlink()
    with pytest.raises(ImageError, match=victims[1].name):
        export_onnx(path, strict, out=tmp_path / "other")


def copy_of(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*.png"):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return to


def test_a_folder_that_does_not_go_with_the_labels_is_refused(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig, coloured_files: Path, tmp_path: Path
) -> None:
    path = save(linear_digits.graph())
    refuse(
        path, foreign(val=str(tmp_path / "gone")), UsageError, "gone: no such folder; expected a sub-folder"
    )
    refuse(
        path,
        foreign(val=str(path)),
        UsageError,
        "is a file, not a folder; expected a sub-folder for each class",
    )
    divided = tmp_path / "data"
    for part in ("train", "val"):
        copy_of(coloured_files, divided / part)
    refuse(path, foreign(val=str(divided)), DataError, "holds train/, not classes: name .*/data/val")
    (divided / "val" / "cat").mkdir()
    (next((divided / "val" / "3").iterdir())).rename(divided / "val" / "cat" / "a.png")
    message = "class 'cat' is unknown to the list of labels, which has: 0, 1"
    refuse(path, foreign(val=str(divided / "val")), DataError, message)


def test_calibration_images_that_also_validate_do_not_calibrate(
    linear_digits: LinearDigits, save: Save, foreign: MakeConfig, coloured_files: Path, tmp_path: Path
) -> None:
    path = save(linear_digits.graph())
    message = "every image also validates: give others, or leave --calibration out"
    with pytest.raises(DataError, match=message):
        export_onnx(path, foreign(calibration=str(coloured_files)), out=tmp_path / "bundle")
    own = tmp_path / "calibration"
    (own / "3").mkdir(parents=True)
    broken = own / "3" / "broken.png"
    whole = next((coloured_files / "4").iterdir()).read_bytes()
    broken.write_bytes(whole[:-40])  # its header is sound
    with pytest.raises(DataError, match="calibration: none of 1 images can be read: replace them"):
        export_onnx(path, foreign(calibration=str(own)), out=tmp_path / "bundle")
    copied = next((coloured_files / "3").iterdir())
    (own / "3" / "same.png").write_bytes(copied.read_bytes())
    Image.fromarray(np.asarray(Image.open(copied)) // 2).save(own / "3" / "darker.png")
    notes: list[str] = []
    config = ExportConfig(variants=("int8-cpu",), reduce_range=True, accept_uncertified=True)
    export_onnx(
        path, foreign(calibration=str(own)), config=config, out=tmp_path / "bundle", on_note=notes.append
    )
    assert "calibration: 1 image(s) also validate: left out" in notes
    assert any("left out: " in note and "broken.png" in note for note in notes)
    manifest = Bundle.open(tmp_path / "bundle").manifest
    made = [item.quantization.calibration_images for item in manifest.variants if item.quantization]
    assert made == [1] or [item.precision for item in manifest.left_out] == ["int8-cpu"]


def test_the_command_tells_what_it_took_and_what_it_proved(
    linear_digits: LinearDigits, save: Save, coloured_files: Path
) -> None:
    path = save(linear_digits.graph())
    labels = path.parent / "labels.txt"
    labels.write_text("\n".join(LABELS))
    asked = [
        "export",
        "--onnx",
        str(path),
        "--labels",
        str(labels),
        "--val",
        str(coloured_files),
        "--resize",
        "fit",
    ]
    asked += ["--out", str(path.parent / "bundle")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 2
    assert "mean and std: there is no convention for networks of small images: give --mean" in done.stderr
    done = CliRunner().invoke(main, [*asked, "--mean", "0.4,0.5,3/5", "--std", "0.2,0.3,0.4"])
    assert done.exit_code == 0, done.output
    assert "0 of 40 decisions differ from the graph as it was given" in done.stdout
    assert done.stdout.splitlines()[-1] == str(path.parent / "bundle")
    assert "mean 0.4, 0.5, 0.6, std 0.2, 0.3, 0.4 (given)" in done.stderr
    assert Bundle.open(path.parent / "bundle").manifest.normalization == Normalization(mean=MEAN, std=STD)
