"""The WebUI's entry, executed by it at each start and at each *Reload UI*: mounts the pack as the package `sd_atelier`.

The WebUI executes this file unregistered and has the extension's folder on `sys.path` only meanwhile; another
extension's `lib` or `scripts` may be in `sys.modules` already. So the pack gets one name of its own, and everything in
it is imported relative to that. A reload imports the pack anew, unless a run goes on: its modules stay under it, and
only the pages are registered again.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PACKAGE = "sd_atelier"


def mount(folder, is_live):
    """Make the pack in `folder` importable as `sd_atelier`; what is already imported stays where `is_live`."""
    if is_live and PACKAGE in sys.modules:
        return
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(PACKAGE + ".")]:
        del sys.modules[name]
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    package.__spec__ = ModuleSpec(PACKAGE, None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules[PACKAGE] = package


def live_runs():
    """Whether a run goes on that was started before this reload."""
    from modules import shared

    registry = getattr(shared, "atelier", None)
    return registry is not None and any(run.is_live for run in registry.runs)


# tests import this file without a WebUI around it
if "modules.shared" in sys.modules:
    mount(Path(__file__).resolve().parent.parent, live_runs())
    import_module(PACKAGE + ".scripts.webui").register()
