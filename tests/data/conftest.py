"""What several tests of the data set need."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for onnx_writer
