"""Starts the WebUI's modules in this process, without its pages, with the pack as an extension of it; for `laws.py`.

Environment: A1111_PATH (checkout), A1111_CHECKPOINT (file), A1111_DATA (an empty folder), A1111_ARGS (further options),
A1111_SETTINGS (further settings, JSON).
"""

import json
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = Path(os.environ["A1111_CHECKPOINT"])
DATA = Path(os.environ["A1111_DATA"])


def boot():
    """Load scripts, extensions and the checkpoint as the WebUI does at its start."""
    warnings.simplefilter("ignore")
    for folder in ("extensions", "models/Lora", "models/Stable-diffusion", "embeddings", "tmp"):
        (DATA / folder).mkdir(parents=True, exist_ok=True)
    (DATA / "extensions" / "atelier").symlink_to(ROOT)
    settings = {"sd_model_checkpoint": CHECKPOINT.name, "CLIP_stop_at_last_layers": 1, "live_previews_enable": True}
    settings |= json.loads(os.environ.get("A1111_SETTINGS", "{}"))
    (DATA / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", MPLBACKEND="Agg")
    os.chdir(os.environ["A1111_PATH"])
    sys.path.insert(0, os.getcwd())
    options = "--skip-prepare-environment --skip-torch-cuda-test --skip-version-check --skip-python-version-check"
    options += (
        " --use-cpu all --no-download-sd-model --do-not-download-clip --no-hashing --disable-console-progressbars"
    )
    sys.argv = ["launch.py", *options.split(), "--data-dir", str(DATA), "--ckpt-dir", str(CHECKPOINT.parent)]
    sys.argv += os.environ.get("A1111_ARGS", "--no-half").split()
    from modules import initialize

    initialize.imports()
    initialize.check_versions()
    initialize.initialize()
    from modules import script_callbacks, shared

    script_callbacks.before_ui_callback()
    assert shared.sd_model is not None, "the WebUI could not load its checkpoint"
