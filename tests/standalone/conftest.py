"""What these tests share: a tiny model, hosts that hold it, pictures, and PEFT's LoRA as the oracle."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sd_atelier.lib.standalone.demo.model import write_pipeline
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_families

from tiny_families import write_family

MakeHost = Callable[..., StandaloneHost]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder in the layout of Stable Diffusion 1.x."""
    return write_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def v_model(tiny_model: Path) -> Path:
    """The same model, taken to predict v."""
    folder = tiny_model.with_name("tiny-v")
    shutil.copytree(tiny_model, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    text = config.read_text()
    assert '"prediction_type": "epsilon"' in text
    config.write_text(text.replace('"prediction_type": "epsilon"', '"prediction_type": "v_prediction"'))
    return folder


@pytest.fixture(scope="session")
def make_host(tiny_model: Path) -> MakeHost:
    """A host on the CPU with its own copy of a model: `make_host(folder, dtype)`, by default the tiny one in fp32."""

    def make(folder: Path = tiny_model, dtype: torch.dtype = torch.float32, **options: Any) -> StandaloneHost:
        pipeline, info = load_pipeline(folder, dtype=dtype)
        return StandaloneHost(pipeline, model_info=info, device=torch.device("cpu"), **options)

    return make


@pytest.fixture(scope="session")
def family_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`family_model(name)`: a tiny model of another family, one of `tiny_families.FAMILIES`, as a diffusers folder."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        return root / name if (root / name).is_dir() else write_family(root / name, name)

    return folder


@pytest.fixture(scope="session")
def photos() -> Path:
    """Fifteen real photographs of three toys, several aspect ratios, with captions."""
    folder = Path(__file__).parents[3] / "shared/data/photos"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; the drawn pictures stand in for the photographs")
    return folder


@pytest.fixture(scope="session")
def peft_twin() -> Callable[[Mapping[str, nn.Module], Mapping[str, nn.Module], Any], dict[str, nn.Parameter]]:
    """PEFT's LoRA with the same factors: `peft_twin(host.parts, others, lora)`.

    It is injected into `others`, plain copies of the host's parts, at the very layers that `lora` chose, with its
    ranks, alphas and present values. Returns PEFT's parameters under the names that ours have in files.
    """
    from peft import LoraConfig, inject_adapter_in_model

    def twin(parts: Mapping[str, nn.Module], others: Mapping[str, nn.Module], lora: Any) -> dict[str, nn.Parameter]:
        file_names = {id(m.module): name for name, members in lora.layer_names().items() for m in members}
        file = lora.export(lora.parameters(), torch.float64)
        pairs: dict[str, nn.Parameter] = {}
        for part, root in parts.items():
            names = {n: file_names[id(m)] for n, m in root.named_modules() if id(m) in file_names}
            others[part].requires_grad_(False)
            if not names:
                continue
            ranks = {re.escape(n): file[f"{f}.lora_down.weight"].shape[0] for n, f in names.items()}
            alphas = {re.escape(n): file[f"{f}.alpha"].item() for n, f in names.items()}
            config = LoraConfig(target_modules=list(names), rank_pattern=ranks, alpha_pattern=alphas)
            inject_adapter_in_model(config, others[part])
            for name, file_name in names.items():
                layer = others[part].get_submodule(name)
                halves = {"down": layer.lora_A["default"], "up": layer.lora_B["default"]}
                for half, module in halves.items():
                    parameter = pairs[f"{file_name}.lora_{half}.weight"] = module.weight
                    parameter.data = file[f"{file_name}.lora_{half}.weight"].to(parameter.dtype)
        trained = {id(p) for root in others.values() for p in root.parameters() if p.requires_grad}
        assert trained == {id(p) for p in pairs.values()} and pairs.keys() == lora.parameters().keys()
        return pairs

    return twin
