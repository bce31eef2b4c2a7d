"""A run in the WebUI's process that begins or goes on: settings in A1111_CONFIG (JSON) or a folder in A1111_RUN; it ends
at step A1111_STOP as if the user had stopped it. Prints the status as JSON. Run by `test_other_hosts.py`.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from boot import boot

boot()

runs = import_module("sd_atelier.scripts.webui.runs")
host = import_module("sd_atelier.scripts.webui.host").WebuiHost
plain, stop_at = host.progress, int(os.environ.get("A1111_STOP", "0"))


def progress(self, shown):
    """Stop at the step that is asked for."""
    plain(self, shown)
    if shown.step == stop_at:
        self.control.stop()


host.progress = progress
if "A1111_RUN" in os.environ:
    run = runs.resume(os.environ["A1111_RUN"])
else:
    config = import_module("sd_atelier.lib.config")
    settings = config.from_dict(config.RunConfig, json.loads(os.environ["A1111_CONFIG"]))
    run = runs.start(settings, parent=Path(os.environ["A1111_PARENT"]))
run.join(600)
print("\n" + json.dumps({"status": run.status()}), flush=True)
os._exit(0)
