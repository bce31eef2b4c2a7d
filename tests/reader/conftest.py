"""What the tests of the reader need."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for reader and train_reader
