"""ONNX Runtime on the CPU and on CUDA, strict: the provider that was asked for, or an error."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, DeviceError, require
from . import BackendInfo

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Concurrent creation of sessions races in the library (onnxruntime issue 27089).
_CREATION = threading.Lock()
_ERRORS_ONLY = 3


class OrtBackend:
    """One ONNX Runtime session. Build it with `OrtBackend.open`."""

    def __init__(self, session: Any, provider: str) -> None:
        self._session = session
        self._provider = provider
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    @classmethod
    def open(
        cls,
        model: bytes,
        *,
        provider: str,
        provider_options: dict[str, str] | None = None,
        intra_op_threads: int = 1,
    ) -> OrtBackend:
        """Opens a session on exactly one provider.

        Args:
            model: a serialised ONNX model with one input and one output.
            provider: ONNX Runtime's name, such as ``"CUDAExecutionProvider"``.
            provider_options: as ONNX Runtime documents them for that provider.
            intra_op_threads: threads that one run may use on the CPU.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            DeviceError: the provider cannot run here, or not the whole graph.
            BundleError: the model cannot be read.
        """
        ort = require("onnxruntime")
        if provider not in ort.get_available_providers():
            raise DeviceError(
                f"this onnxruntime ({ort.__version__}) has no {provider}: "
                "run  pip uninstall -y onnxruntime  and then  pip install 'shipnet[gpu]'"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if provider != PROVIDERS["cpu"]:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with _CREATION:
            if provider != PROVIDERS["cpu"] and hasattr(ort, "preload_dlls"):
                with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
                    ort.preload_dlls()
            session = _create(ort, model, options, (provider, provider_options or {}))
        backend = cls(session, provider)
        backend._refuse_other_providers()
        return backend

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uint8 (N, H, W, C), N >= 1, to float32 logits (N, num_classes).

        Raises:
            DeviceError: the library failed to run, out of memory among other things.
        """
        try:
            (logits,) = self._session.run([self._output], {self._input: images})
        except Exception as error:  # the library's errors share no base class
            raise DeviceError(
                f"{self._provider}: running a batch of {len(images)} failed: {error}"
            ) from error
        return logits  # type: ignore[no-any-return]

    def describe(self) -> BackendInfo:
        """The provider and how many nodes it holds, as the session reports them."""
        if not hasattr(self._session, "get_provider_graph_assignment_info"):  # before onnxruntime 1.24
            return BackendInfo(provider=self._session.get_providers()[0], nodes={})
        nodes: Counter[str] = Counter()
        for subgraph in self._session.get_provider_graph_assignment_info():
            nodes[subgraph.ep_name] += len(subgraph.get_nodes())
        return BackendInfo(provider=self._session.get_providers()[0], nodes=dict(nodes))

    def close(self) -> None:
        """Drops the session, and with it the device's memory."""
        self._session = None

    def _refuse_other_providers(self) -> None:
        info = self.describe()
        strangers = {name for name in info.nodes if name != self._provider}
        if info.provider != self._provider or strangers:
            raise DeviceError(
                f"{self._provider} was asked for, but the session runs on "
                f"{', '.join(sorted(strangers)) or info.provider}: "
                "run  shipnet doctor  to see what this machine can run"
            )


def _create(ort: Any, model: bytes, options: Any, provider: tuple[str, dict[str, str]]) -> Any:
    """The one place where the library's errors of creation become ours."""
    try:
        return ort.InferenceSession(model, sess_options=options, providers=[provider])
    except Exception as error:
        name = provider[0]
        reason = str(error).strip().splitlines()[0]
        if name == PROVIDERS["cpu"]:
            raise BundleError(f"onnxruntime {ort.__version__} cannot open the model: {reason}") from error
        raise DeviceError(
            f"{name} cannot run here: {reason}: run  shipnet doctor  to see what is missing"
        ) from error
