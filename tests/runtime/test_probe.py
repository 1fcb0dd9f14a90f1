"""The tiny network that engines are tried with."""

from __future__ import annotations

import pytest

from shipnet.runtime.probe import MODEL, probe


def test_the_model_is_what_its_comment_says() -> None:
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["cast"], to=kinds.FLOAT),
            helper.make_node("Relu", ["cast"], ["logits"]),
        ],
        "probe",
        [helper.make_tensor_value_info("pixels", kinds.UINT8, ["N"])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["N"])],
    )
    expected = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    model = onnx.load_model_from_string(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert model == expected


def test_the_cpu_runs_it() -> None:
    ort = pytest.importorskip("onnxruntime")
    result = probe("CPUExecutionProvider")
    assert (result.opens, result.reason, result.version) == (True, "", ort.__version__)
    assert result.listed == tuple(ort.get_available_providers())


def test_an_unknown_provider_does_not_open() -> None:
    pytest.importorskip("onnxruntime")
    result = probe("NoSuchExecutionProvider")
    assert not result.opens
    assert "has no NoSuchExecutionProvider" in result.reason
