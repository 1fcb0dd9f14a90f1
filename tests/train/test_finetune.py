"""Training that starts from weights: what is loaded, what is refused, what learns how fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model, get_model_weights

from shipnet.cli import main
from shipnet.runtime import UsageError
from shipnet.train import DataConfig, Dataset, RunError, TrainConfig, fit, load_data, load_run
from shipnet.train.architectures import build
from shipnet.train.config import ARCHITECTURES, RESNETS
from shipnet.train.events import Event, Started
from shipnet.train.finetune import head_name, set_training, stages
from shipnet.train.recipe import resolve
from shipnet.train.weights import WeightsError, find_weights, load_weights, read_weights

MakeFolder = Callable[..., Path]
State = dict[str, torch.Tensor]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def small(num_classes: int = 10, *, arch: str = "conv_cnn", channels: int = 1, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return build(arch, channels=channels, num_classes=num_classes, image_size=8)


def saved(net: nn.Module, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path)
    return str(path)


def labels(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


@pytest.fixture
def photographs(make_folder: MakeFolder) -> Dataset:
    root = make_folder({"cat": 20, "dog": 20}, size=(90, 70), mode="RGB")
    return load_data(DataConfig(data=str(root), image_size=64))


# Networks in parts


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_has_stages_and_a_head(arch: str) -> None:
    with torch.device("meta"):
        net = build(arch, channels=3, num_classes=7, image_size=64)
    parts = stages(net)
    names = (
        ["stem", "layer1", "layer2", "layer3", "layer4", "fc"]
        if arch in RESNETS
        else ["stage1", "stage2", "stage3", "stage4", "head"]
    )
    assert list(parts) == names
    assert head_name(net) == names[-1]
    held = [id(parameter) for part in parts.values() for parameter in part.parameters()]
    assert held == [id(parameter) for parameter in net.parameters()]


def test_a_frozen_body_stays_as_it_is_while_the_head_learns() -> None:
    net = small()
    set_training(net, frozen=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(16, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("head.")), name
    set_training(net, frozen=False)
    net(torch.randn(16, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not torch.equal(net.state_dict()["conv1.2.running_mean"], before["conv1.2.running_mean"])


# Files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_loaded_whole(suffix: str, tmp_path: Path) -> None:
    source, net = small(), small(seed=6)
    file = saved(source, tmp_path / f"weights{suffix}")
    done = load_weights(net, TrainConfig(arch="conv_cnn", weights=file), labels(10))
    assert done == (f"starts from the weights of weights{suffix}",)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def test_a_head_for_other_classes_stays_fresh(tmp_path: Path) -> None:
    source, net = small(4), small(10)
    fresh = net.state_dict()["head.0.weight"].clone()
    file = saved(source, tmp_path / "weights.safetensors")
    done = load_weights(net, TrainConfig(arch="conv_cnn", weights=file), labels(10))
    assert done[1] == "the head is fresh: it is for 10 other classes"
    assert torch.equal(net.state_dict()["head.0.weight"], fresh)
    assert torch.equal(net.state_dict()["conv4.0.weight"], source.state_dict()["conv4.0.weight"])


def test_a_run_of_other_classes_gives_its_body_alone(digits_run: Path) -> None:
    theirs = load_run(digits_run).network().net.state_dict()
    config = TrainConfig(arch="conv_cnn", weights=str(digits_run))
    for names, kept in ((load_run(digits_run).record.labels, True), (labels(10), False)):
        net = small()
        load_weights(net, config, names)
        assert torch.equal(net.state_dict()["conv1.0.weight"], theirs["conv1.0.weight"])
        assert torch.equal(net.state_dict()["head.0.weight"], theirs["head.0.weight"]) == kept


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvisions_own_state_dict_fits_and_grey_sums_its_stem(arch: str, tmp_path: Path) -> None:
    theirs = get_model(arch, weights=None)
    file = saved(theirs, tmp_path / "weights.pth")
    config = TrainConfig(arch=arch, weights=file)
    color = build(arch, channels=3, num_classes=5, image_size=64)
    assert load_weights(color, config, labels(5))[1:] == ("the head is fresh: it is for 5 other classes",)
    assert torch.equal(color.state_dict()["layer4.1.bn2.bias"], theirs.state_dict()["layer4.1.bn2.bias"])
    grey = build(arch, channels=1, num_classes=5, image_size=64)
    assert any("the images are grey" in sentence for sentence in load_weights(grey, config, labels(5)))
    image = torch.randn(2, 1, 64, 64)
    color_stem, grey_stem = color.get_submodule("conv1"), grey.get_submodule("conv1")
    assert torch.allclose(grey_stem(image), color_stem(image.expand(-1, 3, -1, -1)), atol=1e-5)


def test_old_files_have_no_counters(tmp_path: Path) -> None:
    state = {name: value for name, value in small().state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    net = small(seed=6)
    load_weights(net, TrainConfig(arch="conv_cnn", weights=str(tmp_path / "old.pth")), labels(10))
    assert torch.equal(net.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    file = saved(get_model("resnet18", weights=None), tmp_path / "weights.pth")
    net = build("resnet34", channels=3, num_classes=10, image_size=64)
    message = (
        r"weights\.pth: not the weights of this resnet34: layer1\.2\.conv1\.weight is missing; .*, and \d+ more: "
        "give the --arch that they were trained with"
    )
    with pytest.raises(WeightsError, match=message):
        load_weights(net, TrainConfig(arch="resnet34", weights=file), labels(10))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    state: State = small().state_dict()
    state["conv2.0.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError, match=r"conv2\.0\.weight is 16x9x3x3, expected 16x8x3x3: give the --arch"
    ):
        load_weights(
            small(), TrainConfig(arch="conv_cnn", weights=str(tmp_path / "w.safetensors")), labels(10)
        )


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [(64, 32, "images below 64 pixels take a 3x3 stem: give --image-size 64"), (32, 64, "have the 3x3 stem")],
)
def test_stems_of_other_image_sizes_are_explained(
    theirs: int, ours: int, message: str, tmp_path: Path
) -> None:
    file = saved(build("resnet18", channels=3, num_classes=3, image_size=theirs), tmp_path / "w.safetensors")
    net = build("resnet18", channels=3, num_classes=3, image_size=ours)
    with pytest.raises(WeightsError, match=message):
        load_weights(net, TrainConfig(arch="resnet18", weights=file), labels(3))


class Stranger:
    """What a pickle may hold and a state dict may not."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "model": {}}, r"holds a dict with 'epoch' \(int\), 'model' \(dict\), not a state dict"),
        ({}, "holds an empty dict, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        (Stranger(), "no weights that can be read safely: .*: save model.state_dict"),
        ({"a": torch.tensor([float("nan")])}, "a holds numbers that are not finite"),
    ],
)
def test_a_pickle_that_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(tmp_path / "checkpoint.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"hello" * 100])
def test_a_damaged_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: no weights that can be read safely"):
        read_weights(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    data = load_data(DataConfig())
    with pytest.raises(WeightsError, match=r"weights 'nowhere\.pth': no such file"):
        resolve(TrainConfig(weights="nowhere.pth"), data)
    with pytest.raises(RunError, match=r"holds no run\.json"):
        resolve(TrainConfig(weights=str(tmp_path)), data)


def test_another_file_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    file = saved(small(), tmp_path / "w.safetensors")
    data = load_data(DataConfig())
    resolved = resolve(TrainConfig(arch="conv_cnn", weights=file), data)
    assert resolve(resolved, data) == resolved
    saved(small(seed=6), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"its sha256 is \w{12}, but the configuration names \w{12}"):
        resolve(resolved, data)


# torchvision's weights


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, and no way out: every connection is refused."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return tmp_path / "torch"


def test_a_download_that_fails_says_what_else_to_do(torch_home: Path, photographs: Dataset) -> None:
    config = resolve(TrainConfig(pretrained=True), photographs)
    net = build("resnet18", channels=3, num_classes=2, image_size=64)
    message = (
        r"https://download\.pytorch\.org/models/resnet18-f37072fd\.pth cannot be downloaded: .*refused.*: lay the "
        rf"file at {torch_home}/hub/checkpoints/resnet18-f37072fd\.pth by hand, or .* --weights FILE"
    )
    with pytest.raises(WeightsError, match=message):
        load_weights(net, config, photographs.labels)
    assert not any((torch_home / "hub" / "checkpoints").iterdir())


def test_a_file_in_torchs_cache_is_used(torch_home: Path) -> None:
    theirs = get_model("resnet18", weights=None)
    (torch_home / "hub" / "checkpoints").mkdir(parents=True)
    saved(theirs, torch_home / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    net = build("resnet18", channels=3, num_classes=2, image_size=64)
    done = load_weights(net, TrainConfig(arch="resnet18", pretrained=True), ("cat", "dog"))
    assert done[0] == "starts from the weights of resnet18, torchvision's IMAGENET1K_V1"
    assert torch.equal(net.state_dict()["conv1.weight"], theirs.state_dict()["conv1.weight"])


@pytest.mark.parametrize("arch", RESNETS)
def test_every_resnet_has_weights_with_statistics(arch: str) -> None:
    origin = find_weights(TrainConfig(arch=arch, pretrained=True))
    assert (origin.arch, origin.mean, origin.std) == (arch, *IMAGENET)
    assert get_model_weights(arch).DEFAULT.name in origin.name


def test_statistics_come_with_the_weights(
    photographs: Dataset, make_folder: MakeFolder, digits_run: Path
) -> None:
    resolved = resolve(TrainConfig(pretrained=True), photographs)
    assert (resolved.recipe, resolved.arch) == ("finetune", "resnet18")
    assert (resolved.mean, resolved.std) == IMAGENET
    given = resolve(TrainConfig(pretrained=True, mean=(0.5,) * 3, std=(0.5,) * 3), photographs)
    assert given.mean == (0.5,) * 3
    grey = load_data(DataConfig(data=str(make_folder({"a": 9, "b": 9}, at="grey")), image_size=64))
    assert resolve(TrainConfig(pretrained=True), grey).mean == (0.449,)
    from_run = resolve(TrainConfig(weights=str(digits_run)), load_data(DataConfig()))
    record = load_run(digits_run).record
    assert (from_run.arch, from_run.mean, from_run.std) == ("conv_cnn", record.mean, record.std)
    assert from_run.weights_sha256 == record.weights_sha256


def test_small_networks_have_no_weights_to_download() -> None:
    with pytest.raises(UsageError, match="torchvision has no weights for conv_cnn: choose a ResNet, or"):
        resolve(TrainConfig(arch="conv_cnn", pretrained=True), load_data(DataConfig()))


# Whole trainings


def test_weights_that_know_digits_learn_half_of_them_faster(
    digits_run: Path, make_folder: MakeFolder, tmp_path: Path
) -> None:
    root = make_folder(dict.fromkeys(("five", "four", "one", "three", "two"), 60))
    options = {"data": DataConfig(data=str(root)), "arch": "conv_cnn", "epochs": 2, "device": "cpu"}
    options |= {"batch_size": 16}
    events: list[Event] = []
    config = TrainConfig(**options, weights=str(digits_run))
    tuned = fit(config, tmp_path / "tuned" / "run", on_event=events.append).record
    fresh = fit(TrainConfig(**options), tmp_path / "fresh" / "run").record
    assert tuned.accuracy > fresh.accuracy
    assert tuned.accuracy > 0.9
    assert (tuned.config.recipe, tuned.config.freeze_epochs, tuned.config.lr_div) == ("finetune", 1, 100.0)
    assert tuned.config.weights == str(digits_run.absolute())
    started = next(event for event in events if isinstance(event, Started))
    assert started.start[1] == "the head is fresh: it is for 5 other classes"


def test_a_body_frozen_throughout_is_the_one_that_was_loaded(digits_run: Path, tmp_path: Path) -> None:
    config = TrainConfig(weights=str(digits_run), epochs=1, freeze_epochs=1, device="cpu")
    before = load_run(digits_run).network().state_dict()
    after = fit(config, tmp_path / "run").network().state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("net.head.") for name in changed)


def test_a_resnet_is_tuned_on_photographs(photographs: Dataset, tmp_path: Path) -> None:
    file = saved(get_model("resnet18", weights=None), tmp_path / "weights.pth")
    config = TrainConfig(arch="resnet18", weights=file, epochs=2, workers=0, device="cpu")
    record = fit(config, tmp_path / "run", dataset=photographs).record
    assert record.config.recipe == "finetune"
    assert record.history[1].learning_rate < record.history[0].learning_rate
    assert load_run(tmp_path / "run").network().net.get_submodule("fc").out_features == 2  # type: ignore[union-attr]


def test_the_command_fine_tunes_and_says_so(digits_run: Path, tmp_path: Path) -> None:
    arguments = ["--weights", str(digits_run), "--epochs", "1", "--freeze-epochs", "1", "--lr-div", "10"]
    done = CliRunner().invoke(
        main, ["train", *arguments, "--device", "cpu", "--json", "--out", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    config = json.loads(done.stdout)["config"]
    assert (config["recipe"], config["freeze_epochs"], config["lr_div"]) == ("finetune", 1, 10.0)
    assert "starts from the weights of the run digits, conv_cnn" in done.stderr
    summary = CliRunner().invoke(main, ["train", *arguments, "--summary"])
    rows = [line.split("│") for line in summary.stdout.splitlines()]
    trainable = {row[0].strip(): row[-1].strip() for row in rows if len(row) == 5}
    assert (trainable["conv1.0"], trainable["head.0"]) == ("no", "yes")
    assert trainable["total"] == "1,460"
    assert "its body is frozen for 1 epoch(s)" in summary.stdout


def test_a_bundle_names_the_weights_and_not_their_place(digits_run: Path, tmp_path: Path) -> None:
    from shipnet.export import export

    file = tmp_path / "mine.safetensors"
    file.write_bytes(load_run(digits_run).weights_path.read_bytes())
    config = TrainConfig(arch="conv_cnn", weights=str(file), epochs=1, device="cpu")
    bundle = export(fit(config, tmp_path / "run"))
    recipe = bundle.manifest.provenance.recipe
    assert (recipe["weights"], recipe["recipe"]) == ("mine.safetensors", "finetune")
    assert recipe["weights_sha256"] == load_run(digits_run).record.weights_sha256
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text(encoding="utf-8")
