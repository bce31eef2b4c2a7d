"""Our names beside those of kohya's own code on its own full-size models, key by key.

KOHYA_PATH names a folder with kohya's scripts, KOHYA_PYTHON an interpreter that can run them (else the tests' own).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sd_atelier.lib.registry import SPELLINGS
from torch import nn

KOHYA = os.environ.get("KOHYA_PATH")


@pytest.mark.skipif(not KOHYA, reason="KOHYA_PATH names no folder with kohya's scripts")
def test_kohya_trains_the_layers_that_have_a_kind_under_the_same_names(
    model: str, family: str, layers: dict[tuple[str, str], nn.Module]
) -> None:
    program = Path(__file__).with_name("kohya_names.py")
    python = os.environ.get("KOHYA_PYTHON", sys.executable)
    run = subprocess.run([python, str(program), str(KOHYA), model], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = json.loads(run.stdout)
    names = SPELLINGS.get(family)()  # type: ignore[operator]
    ours = {names.kohya_name(part, name) for part, name in layers if names.kind(part, name)}
    assert len(theirs) == len(set(theirs))
    assert ours == set(theirs)
