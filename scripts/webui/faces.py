"""Faces in pictures, found by the host's OpenCV with what is on this machine; nothing is downloaded.

The detector is YuNet where the host has fetched it for its own focal-point crop, else OpenCV's own Haar cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ...lib.data.focal_point import Box, FaceDetector

_CASCADE = "haarcascade_frontalface_default.xml"
_YUNET = ("face_detection_yunet_2023mar.onnx", "face_detection_yunet.onnx")
_LEAST = 0.05  # of the shorter side; smaller ones are patterns more often than faces
_LOOKED_AT_PX = 1024  # longest side of what is looked at


def name() -> str:
    """The detector's name, for the record of what pictures were prepared by; empty where there is none."""
    yunet, cascade = _files()
    return yunet.name if yunet else cascade.name if cascade else ""


def detector() -> FaceDetector | None:
    """The best detector that is there, or None."""
    yunet, cascade = _files()
    if yunet is None and cascade is None:
        return None
    import cv2

    lock = Lock()  # a detector keeps its state between calls
    net: Any = cv2.FaceDetectorYN.create(str(yunet), "", (0, 0)) if yunet else None
    trees: Any = None if yunet else cv2.CascadeClassifier(str(cascade))

    def detect(pixels: np.ndarray) -> Sequence[Box]:
        height, width = pixels.shape[:2]
        scale = min(1.0, _LOOKED_AT_PX / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
        with lock:
            if net is not None:
                net.setInputSize(size)
                found = net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
            else:
                grey = cv2.equalizeHist(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
                least = max(24, int(_LEAST * min(size)))
                found = trees.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=7, minSize=(least, least))
        rows = [] if found is None else [[float(value) / scale for value in row[:4]] for row in found]
        return [(x, y, x + w, y + h) for x, y, w, h in rows]

    return detect


def _files() -> tuple[Path | None, Path | None]:
    """(YuNet, cascade), each None where it is not there."""
    try:
        import cv2
    except ImportError:
        return None, None
    from modules import paths

    yunet = next((p for file in _YUNET if (p := Path(paths.models_path) / "opencv" / file).is_file()), None)
    cascade = Path(cv2.__file__).parent / "data" / _CASCADE
    return (yunet if hasattr(cv2, "FaceDetectorYN") else None), (cascade if cascade.is_file() else None)
