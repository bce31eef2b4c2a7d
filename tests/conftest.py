"""What holds for every test. Set before anything imports torch: one thread, no network, no screen.

Sums over several threads differ in their last bits from machine to machine, and tiny tensors are faster on one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
