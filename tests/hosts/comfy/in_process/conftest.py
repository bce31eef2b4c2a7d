"""ComfyUI inside the test's process, on the CPU."""

import os
import sys

if os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    # before anything of ComfyUI asks which devices there are
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
