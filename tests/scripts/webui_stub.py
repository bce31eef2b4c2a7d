"""As much of the WebUI's modules as the page of a data set asks for, so that it can be tested without a WebUI."""

import sys
import threading
from types import ModuleType, SimpleNamespace


class Interrogator:
    """Stands for the host's BLIP: it names the colour in the middle of a picture."""

    def __init__(self):
        self.blip_model, self.dtype, self.running_on_cpu, self.in_memory = None, None, True, False

    def load_blip_model(self):
        return SimpleNamespace(to=lambda device: self.blip_model or SimpleNamespace(to=lambda d: self.blip_model))

    def generate_caption(self, picture):
        return f" a picture of {picture.getpixel((picture.width // 2, picture.height // 2))} "

    def send_blip_to_ram(self):
        self.in_memory = False


class DeepBooru:
    """Stands for the host's DeepDanbooru: as its own, it reads its settings from its module's `shared`."""

    def __init__(self, module):
        self.module, self.running, self.seen = module, False, []

    def load(self):
        pass

    def start(self):
        self.running = True

    def stop(self):
        self.running = False

    def tag_multi(self, picture, force_disable_ranks=False):
        assert self.running and force_disable_ranks
        opts = self.module.shared.opts
        self.seen.append((opts.deepbooru_escape, opts.interrogate_deepbooru_score_threshold))
        return "one tag, another_(tag)"


def installed(monkeypatch, folder, local=True):
    """Put the modules in place for a test; `folder` is the WebUI's data. Returns what tests look at."""
    options = {"share": False, "listen": not local, "ngrok": None, "server_name": None, "no_half": True}
    lock = threading.Lock()
    names = ("call_queue", "deepbooru", "devices", "lowvram", "paths", "sd_models", "shared", "torch_utils")
    host = {name: ModuleType(f"modules.{name}") for name in names}
    shared = host["shared"]
    shared.cmd_opts = SimpleNamespace(**options)
    shared.opts = SimpleNamespace(deepbooru_escape=True, interrogate_deepbooru_score_threshold=0.5)
    shared.sd_upscalers, shared.interrogator = [], Interrogator()
    shared.state = SimpleNamespace()
    host["call_queue"].queue_lock = lock
    host["deepbooru"].shared = shared
    host["deepbooru"].model = DeepBooru(host["deepbooru"])
    host["devices"].device = host["devices"].device_interrogate = "cpu"
    host["devices"].torch_gc = host["lowvram"].send_everything_to_cpu = lambda: None
    host["paths"].data_path, host["paths"].models_path = str(folder), str(folder / "models")
    host["paths"].paths = {"BLIP": str(folder)}
    host["sd_models"].model_data = SimpleNamespace(sd_model=None)
    host["torch_utils"].get_param = lambda model: SimpleNamespace(dtype="float32")
    package = ModuleType("modules")
    for name, module in host.items():
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
    monkeypatch.setitem(sys.modules, "modules", package)
    return SimpleNamespace(**host, lock=lock)
