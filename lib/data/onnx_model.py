"""A model in an ONNX file that the user has placed: opened and run by onnxruntime, on the host's device where it can.

Nothing is ever downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .headers import printable

# torch's device -> what onnxruntime calls the same; the processor always follows.
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cuda": ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider"),
    "mps": ("CoreMLExecutionProvider",),
    "privateuseone": ("DmlExecutionProvider",),
    "xpu": ("OpenVINOExecutionProvider",),
}


class OnnxModel:
    """A model with one picture as its input; its first output counts.

    `device` is torch's name of one; where onnxruntime has no provider for it, the processor does the work, and
    `provider` says which it is.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open the file. Errors: `ValueError` in a sentence where onnxruntime is missing or cannot read it."""
        ort, faults = _onnxruntime()
        kind, _, index = device.partition(":")
        there = ort.get_available_providers()
        wanted = [name for name in _PROVIDERS.get(kind, ()) if name in there][:1]
        options = [{"device_id": index} if index and kind != "mps" else {} for _ in wanted]
        try:
            self._session = ort.InferenceSession(
                str(path), providers=[*wanted, "CPUExecutionProvider"], provider_options=[*options, {}]
            )
        except faults as error:
            raise ValueError(f"{printable(path)} cannot be opened as an ONNX model: {_first_line(error)}") from error
        self._faults = faults
        self.path = path
        self.provider: str = self._session.get_providers()[0]
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            got = ", ".join(f"{i.name} {i.type}" for i in inputs)
            raise ValueError(f"{printable(path)} must take one float32 tensor, a batch of pictures; it takes {got}")
        self._input = inputs[0].name
        self._output = self._session.get_outputs()[0].name
        self.input_shape: tuple[int | None, ...] = tuple(n if isinstance(n, int) else None for n in inputs[0].shape)

    @property
    def batch_size(self) -> int | None:
        """How many pictures a call must have; None where that is free."""
        return self.input_shape[0]

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """The first output for float32 pictures, as many rows as they. Errors: `ValueError` where it fails."""
        num = len(batch)
        fixed = self.batch_size
        if fixed and num < fixed:  # what fills it up is dropped again
            batch = np.concatenate([batch, np.zeros((fixed - num, *batch.shape[1:]), batch.dtype)])
        try:
            output = self._session.run([self._output], {self._input: np.ascontiguousarray(batch, np.float32)})[0]
        except self._faults as error:
            raise ValueError(f"{printable(self.path)} failed on {self.provider}: {_first_line(error)}") from error
        if not isinstance(output, np.ndarray) or len(output) != len(batch) or not np.isfinite(output[:num]).all():
            raise ValueError(f"{printable(self.path)} gave no finite row for each picture; it is not such a model")
        return output[:num]


def _onnxruntime() -> tuple[Any, tuple[type[BaseException], ...]]:
    """The package, and what it raises; its errors have no class in common."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ImportError as error:
        raise ValueError(
            "taggers and segmentation need onnxruntime: pip install onnxruntime (onnxruntime-gpu on NVIDIA)"
        ) from error
    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    found = (getattr(state, name, None) for name in (*names, "NoModel", "RuntimeException"))
    return onnxruntime, (*(kind for kind in found if kind is not None), OSError, RuntimeError, ValueError)


def _first_line(error: BaseException) -> str:
    return printable(str(error).strip().splitlines()[0][:200]) if str(error).strip() else type(error).__name__
