"""A real ComfyUI server, started with --cpu, and a client.

It is started from `COMFYUI_PATH` with the Python that runs the tests, has input, output, user and temp folders of its
own, and loads this pack and the nodes of `faults/`. Checkpoints are those that the project's `make_ckpt.py` makes; they
are looked for in `COMFYUI_MODELS` (else in ComfyUI's own models folder), and a test that lacks one is skipped and says
which.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[4]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or "/nowhere")
MODELS = Path(os.environ.get("COMFYUI_MODELS") or COMFYUI / "models")
VERSION = COMFYUI / "comfyui_version.py"
# the smallest checkpoint, 16 MiB; older versions do not read the width of a Flux from its file
OLD = VERSION.is_file() and int(VERSION.read_text("utf-8").split('"')[-2].split(".")[1]) < 9
TINY = "sd3-mini" if OLD else "flux-mini"
START_SECONDS, RUN_SECONDS = 600, 1800  # on a busy machine
OWN_KINDS = ("taggers", "segmenters", "aesthetic_predictors", "upscale_models", "embeddings")
KINDS = ("checkpoints", "loras", "vae", "text_encoders")


class Server:
    """One server process below `folder`; `stop` or `kill` ends it, `start` begins it again over the same folders."""

    def __init__(self, folder, *arguments):
        self.folder, self.arguments, self.process = folder, arguments, None
        for name in ("input", "output", "user", "temp", "nodes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, source in (("atelier", ROOT), ("faults", Path(__file__).parent / "faults")):
            if not (folder / "nodes" / name).exists():
                (folder / "nodes" / name).symlink_to(source, target_is_directory=True)
        lines = ["models:", f"  base_path: {MODELS}"] + [f"  {kind}: {kind}/" for kind in KINDS]
        lines += ["tests:", f"  base_path: {folder}", "  custom_nodes: nodes/"]
        lines += [f"  {kind}: {kind}/" for kind in OWN_KINDS]
        (folder / "models.yaml").write_text("\n".join(lines) + "\n")

    @property
    def output(self):
        return self.folder / "output"

    def start(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--extra-model-paths-config", str(self.folder / "models.yaml"), "--disable-auto-launch"]
        for name in ("input", "output", "user", "temp"):
            command += [f"--{name}-directory", str(self.folder / name)]
        command += ["--database-url", f"sqlite:///{self.folder / 'user' / 'comfyui.db'}", *self.arguments]
        self.log = open(self.folder / "log", "ab")  # noqa: SIM115 - closed in stop
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, cwd=COMFYUI, stdout=self.log, stderr=self.log, env=environment)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
            with contextlib.suppress(OSError):
                self.call("/system_stats")
                return self
            time.sleep(0.3)
        raise AssertionError(f"no answer after {START_SECONDS} s:\n{self.tail()}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def tail(self):
        return (self.folder / "log").read_text("utf-8", "replace")[-3000:]

    def call(self, path, body=None, headers=None, timeout=120):
        """The JSON answer; an error's is raised as `Refused` with the status."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _answer(error.read())) from None

    def queue(self, graph):
        self.before = {run["run"] for run in self.call("/atelier/runs")["live"]}
        return self.call("/prompt", {"prompt": graph})["prompt_id"]

    def wait(self, prompt_id, seconds=RUN_SECONDS):
        """The history entry of a prompt that has ended, however it ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
            entry = self.call(f"/history/{prompt_id}").get(prompt_id)
            if entry and (entry["status"]["completed"] or entry["status"]["status_str"] == "error"):
                return entry
            time.sleep(0.1)
        raise AssertionError(f"not done after {seconds} s:\n{self.tail()}")

    def run(self, graph):
        """Outputs by node. An error of a node is raised as `Failed`."""
        entry = self.wait(self.queue(graph))
        for kind, about in entry["status"]["messages"]:
            if kind in ("execution_error", "execution_interrupted"):
                raise Failed(kind, about)
        return entry["outputs"]

    def clear(self, seconds=300):
        """End what runs and what waits."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            queue = self.call("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return
            self.call("/queue", {"clear": True})
            self.call("/interrupt", {})
            time.sleep(0.3)
        raise AssertionError(f"still busy after {seconds} s:\n{self.tail()}")

    def live(self, node="3"):
        """What the server says of the run that was queued last; empty before it begins."""
        live = self.call("/atelier/runs")["live"]
        of_node = [run for run in live if run["node"] == node and run["run"] not in self.before]
        return of_node[-1] if of_node else {}

    def until(self, reached, node="3", seconds=RUN_SECONDS):
        """Wait until `reached(what /atelier/runs says)`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            live = self.live(node)
            if live and reached(live):
                return live
            time.sleep(0.05)
        raise AssertionError(f"not so after {seconds} s: {self.live(node)}\n{self.tail()}")

    def image(self, outputs, node):
        """The first picture of a SaveImage node, (H, W, 3) uint8."""
        about = outputs[node]["images"][0]
        with Image.open(self.output / about["subfolder"] / about["filename"]) as image:
            return np.asarray(image.convert("RGB"))


def _answer(body):
    """What an error says: JSON, or a line of text."""
    try:
        return json.loads(body or b"null")
    except ValueError:
        return body.decode("utf-8", "replace")


class Refused(Exception):
    """An HTTP error: status and answer."""

    def __init__(self, status, answer):
        super().__init__(f"{status}: {json.dumps(answer)[:1500]}")
        self.status, self.answer = status, answer


class Failed(Exception):
    """A node ended in an error or was interrupted; `about` is what ComfyUI says of it."""

    def __init__(self, kind, about):
        super().__init__(f"{kind}: {about.get('exception_message', '')}")
        self.kind, self.about = kind, about


class Graphs:
    """Graphs in the form of ComfyUI's API."""

    def __init__(self, server):
        self.server = server
        self._defaults = {}

    def node(self, class_type, **inputs):
        """A node whose widgets have the defaults that the server says."""
        if class_type not in self._defaults:
            info = self.server.call(f"/object_info/{class_type}")[class_type]["input"]
            found = {}
            for part in ("required", "optional"):
                for name, (kind, *about) in info.get(part, {}).items():
                    options = kind if isinstance(kind, list) else about[0].get("options") if about else None
                    if about and "default" in about[0]:
                        found[name] = about[0]["default"]
                    elif options:
                        found[name] = options[0]
            self._defaults[class_type] = found
        return {"class_type": class_type, "inputs": {**self._defaults[class_type], **inputs}}

    def model(self, checkpoint):
        """Nodes 1 (and 4): a checkpoint; where its MODEL, CLIP and VAE come from."""
        if not (MODELS / "checkpoints" / f"{checkpoint}.safetensors").is_file():
            pytest.skip(f"there is no {checkpoint}.safetensors in {MODELS / 'checkpoints'}; make_ckpt.py makes it")
        graph = {"1": self.node("CheckpointLoaderSimple", ckpt_name=f"{checkpoint}.safetensors")}
        clip = ["1", 1]
        if "flux" in checkpoint:  # it has no text encoder of its own
            if not (MODELS / "text_encoders" / "clip-l.safetensors").is_file():
                pytest.skip(f"there is no clip-l.safetensors in {MODELS / 'text_encoders'}")
            graph["4"] = self.node("CLIPLoader", clip_name="clip-l.safetensors", type="sd3")
            clip = ["4", 0]
        return graph, ["1", 0], clip, ["1", 2]

    def training(self, checkpoint, folder, **widgets):
        """Node 2: the folder, node 3: the train node, with a run that is short enough for a test."""
        graph, model, clip, vae = self.model(checkpoint)
        graph["2"] = self.node("AtelierDatasetFolder", folder=str(folder), trigger="sks")
        small = {
            "name": "run", "steps": 4, "resolution": 64, "bucket_step": 32, "batch_size": 1, "accumulate": 1,
            "record_probe_every_steps": 0, "save_every_steps": 2, "preview_steps": 2, "preview_width": 64,
            "preview_height": 64, "save_dtype": "fp32", "preview_guidance": 1.0,
        }  # fmt: skip
        inputs = {"model": model, "clip": clip, "vae": vae, "dataset": ["2", 0], **small, **widgets}
        graph["3"] = self.node("AtelierTrain", **inputs)
        return graph

    def picture(self, graph, checkpoint, model, clip, vae, prompt="a toy", seed=1, steps=2, prefix="picture"):
        """Nodes 10 to 15: a picture of a model as core's nodes make it."""
        empty = "EmptySD3LatentImage" if checkpoint.startswith(("sd3", "flux")) else "EmptyLatentImage"
        flow = checkpoint.startswith(("sd3", "flux"))
        if checkpoint.startswith("flux"):  # previews tell the model their guidance, and core's default is another
            graph["16"] = self.node("FluxGuidance", conditioning=["10", 0], guidance=1.0)
        positive = ["16" if checkpoint.startswith("flux") else "10", 0]
        graph |= {
            "10": self.node("CLIPTextEncode", clip=clip, text=prompt),
            "11": self.node("CLIPTextEncode", clip=clip, text=""),
            "12": self.node(empty, width=64, height=64, batch_size=1),
            "13": self.node(
                "KSampler", model=model, positive=positive, negative=["11", 0], latent_image=["12", 0], seed=seed,
                steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple" if flow else "normal", denoise=1.0,
            ),
            "14": self.node("VAEDecode", samples=["13", 0], vae=vae),
            "15": self.node("SaveImage", images=["14", 0], filename_prefix=prefix),
        }  # fmt: skip
        return graph
