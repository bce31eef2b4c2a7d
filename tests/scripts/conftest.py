"""What several tests of the WebUI's pages need."""

import sys
from pathlib import Path

# for webui_stub, and for onnx_writer
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "data")]
