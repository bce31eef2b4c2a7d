"""A run in the WebUI's process that begins or goes on: settings in A1111_CONFIG (JSON) or a folder in A1111_RUN.

It ends at step A1111_STOP as if the user had stopped it, and its network is published as A1111_PUBLISH where that is
set. Prints the status and where the network was published as JSON. Run by `go_on` of `conftest.py`.
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
said = {"status": run.status()}
if "A1111_PUBLISH" in os.environ:
    publish = import_module("sd_atelier.scripts.webui.publish")
    said["published"] = str(publish.publish(run.status()["folder"], name=os.environ["A1111_PUBLISH"]).path)
print("\n" + json.dumps(said), flush=True)
os._exit(0)
