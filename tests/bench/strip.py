"""Memory and time of composing a large strip: python tests/bench/strip.py [COLUMNS ROWS SIDE_PX].

The pictures are a dozen files that are used again and again, so that the disk holds them and memory need not.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sd_atelier.lib.memory import peak_mb
from sd_atelier.lib.strip.cells import Cell
from sd_atelier.lib.strip.publish import compose
from torch import device


def main(num_columns: int, num_rows: int, side_px: int) -> None:
    """Compose, and print what it took."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [folder / f"{i}.png" for i in range(12)]
        for picture in pictures:
            small = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
            small.resize((side_px, side_px), Image.Resampling.BICUBIC).save(picture)
        places = ((c, r) for c in range(num_columns) for r in range(num_rows))
        cells = [Cell(c, r, pictures[(7 * c + r) % 12], file=pictures[(7 * c + r) % 12].name) for c, r in places]
        status = Path("/proc/self/status").read_text()
        before_mb = int(status.split("VmRSS:")[1].split()[0]) / 1024
        began = time.monotonic()
        pages = compose(
            [f"toy-{200 * (c + 1):06d}" for c in range(num_columns)],
            [f"a photo of a toy, number {r}\nseed {r}" for r in range(num_rows)],
            cells,
            folder / "strip.png",
            title="bench",
        )
        seconds = time.monotonic() - began
        peak = max(peak_mb(device("cpu")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        size_mb = sum(page.stat().st_size for page in pages) / 1e6
    print(
        f"{num_columns} x {num_rows} cells of {side_px} px: {len(pages)} pages, {size_mb:.0f} MB, {seconds:.0f} s, "
        f"peak {peak:.0f} MiB, {peak - before_mb:.0f} MiB more than before"
    )


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:4]) if len(sys.argv) > 3 else (40, 25, 1024)))
