"""A WebUI as its users start it, with its pages and API, for tests over HTTP and in a browser.

Environment as in `conftest.py`. What the WebUI keeps (settings, runs, LoRAs) goes into a folder of the test.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = (
    "--skip-prepare-environment --skip-torch-cuda-test --skip-version-check --skip-python-version-check --use-cpu all "
    "--no-half --api --no-download-sd-model --do-not-download-clip --no-hashing --disable-console-progressbars"
)
START_SECONDS = 900  # a busy machine starts it in many times the usual


class Refused(Exception):
    """An answer that is an error: `status`, and the sentence."""

    def __init__(self, status, sentence):
        self.status = status
        super().__init__(sentence)


class Server:
    """A WebUI process. `get` and `post` are our routes below /atelier/v1, `host` are its own."""

    def __init__(self, folder, port, checkpoint="mini-sd15.safetensors", more=(), settings=None):
        self.folder, self.port, self.log = Path(folder), port, Path(folder) / "log.txt"
        for name in ("extensions", "models/Lora", "models/Stable-diffusion", "embeddings", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        link = self.folder / "extensions" / "atelier"
        if not link.exists():
            link.symlink_to(ROOT)
        given = {"sd_model_checkpoint": checkpoint, "CLIP_stop_at_last_layers": 1, **(settings or {})}
        (self.folder / "config.json").write_text(json.dumps(given), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != "COMMANDLINE_ARGS"}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        environment |= {"MPLBACKEND": "Agg", "TMPDIR": str(self.folder / "tmp"), "NO_PROXY": "127.0.0.1,localhost"}
        command = [os.environ.get("A1111_PYTHON", sys.executable), "launch.py", *OPTIONS.split()]
        command += ["--port", str(port), "--data-dir", str(self.folder)]
        command += ["--ckpt-dir", os.environ["A1111_CHECKPOINTS"], *more]
        self.process = subprocess.Popen(
            command, cwd=os.environ["A1111_PATH"], env=environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )
        try:
            self.wait_for_start(0)
        except AssertionError:
            self.close()
            raise

    def wait_for_start(self, starts_before):
        """Wait for the log to say it: 1.9.4 fails where a request comes while it starts."""
        end = time.monotonic() + START_SECONDS
        while self.starts() <= starts_before:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)

    def starts(self):
        return self.log.read_text(errors="replace").count("Startup time:")

    def close(self):
        self.process.terminate()
        self.process.wait(60)

    def request(self, path, values=None, headers=None, timeout=300):
        data = None if values is None else json.dumps(values).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                kind = answer.headers.get("Content-Type", "")
                data = answer.read()
                return json.loads(data) if kind.startswith("application/json") else data
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise Refused(error.code, json.loads(said).get("error", said) if said.startswith("{") else said) from None

    def get(self, name, /, headers=None, **query):
        asked = "?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else ""
        return self.request(f"/atelier/v1/{name}{asked}", headers=headers)

    def post(self, name, /, headers=None, **values):
        return self.request(f"/atelier/v1/{name}", values, headers)

    def picture(self, prompt, seed=5, steps=2, timeout=600):
        """A picture by the host's own API, base64."""
        values = {"prompt": prompt, "seed": seed, "steps": steps, "width": 64, "height": 64, "sampler_name": "Euler"}
        return self.request("/sdapi/v1/txt2img", values, timeout=timeout)["images"][0]

    def run(self, run_id):
        """The status of a run."""
        return next(run for run in self.get("status")["runs"] if run["id"] == run_id)

    def until(self, run_id, condition, seconds=400):
        """Wait until `condition(status of the run)`; the status then."""
        end = time.monotonic() + seconds
        while True:
            run = self.run(run_id)
            if condition(run):
                return run
            assert time.monotonic() < end, f"nothing came of it: {run}"
            time.sleep(0.3)

    def ended(self, run_id, seconds=400):
        return self.until(run_id, lambda run: not run["live"], seconds)


def settings(folder, **more):
    """The smallest run that is one, by the paths of its settings."""
    return {
        "name": "toys",
        "data.concepts[0].folder": str(folder),
        "data.concepts[0].trigger": "m0nster toy",
        "data.resolution": 64,
        "data.bucket_min_px": 64,
        "loop.steps": 6,
        "trainable.rank": 2,
        "rate.schedule": "1e-3",
        "record.flush_every_steps": 1,
        **more,
    }
