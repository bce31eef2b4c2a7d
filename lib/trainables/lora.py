"""LoRA on Linear layers and convolutions (LoCon).

W' = W + scale * up @ down with scale = alpha / rank (Hu et al. 2021, arXiv:2106.09685), or alpha / sqrt(rank) when rank
stabilised (Kalajdzievski 2023, arXiv:2312.03732). Files carry kohya's names: `<layer>.lora_down.weight`,
`<layer>.lora_up.weight` and `<layer>.alpha`, where readers take alpha / rank as the scale.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import TrainableConfig
from ..draws import key
from ..frozen import Branch
from ..host import Host
from ..registry import ALGORITHMS, SPELLINGS

_KINDS = {
    "attention": {"attention"},
    "attention_mlp": {"attention", "mlp"},
    "kohya": {"attention", "mlp", "projection"},
    "all": {"attention", "mlp", "projection", "block"},
}


@dataclass(frozen=True)
class _Target:
    """A layer that gets an adapter."""

    name: str  # in files
    part: str
    layer: nn.Module
    rank: int
    alpha: float
    rate: str | None  # its own schedule, from a rule


@ALGORITHMS.register("lora")
class Lora:
    """A low-rank update beside chosen layers of a frozen model. All parameters are float32."""

    def __init__(self, config: TrainableConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._targets: dict[str, _Target] = {}
        self._branches: dict[int, Branch] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._moment: tuple[int, int] | None = None
        self._enabled = True

    def prepare(self, host: Host) -> None:
        """Choose layers of the host's model and make their parameters on its device.

        down is Kaiming-uniform with a = sqrt(5), seeded by the layer's name, so that neither the host nor the other
        layers change it; up is zero, so that training starts from the model as it is.
        Errors: `ValueError` when the settings choose no layer.
        """
        for target in _chosen(host, self._config):
            layer = target.layer
            conv = isinstance(layer, nn.Conv2d)
            kernel = tuple(layer.kernel_size) if conv else ()
            num_in = layer.in_channels if conv else layer.in_features  # type: ignore[union-attr]
            num_out = layer.out_channels if conv else layer.out_features  # type: ignore[union-attr]
            down = torch.empty(target.rank, num_in, *kernel)  # type: ignore[arg-type]
            generator = torch.Generator().manual_seed(key(self._seed, target.name, 0, "init"))
            bound = 1 / math.sqrt(down[0].numel())
            down.uniform_(-bound, bound, generator=generator)
            up = torch.zeros(num_out, target.rank, *(1 for _ in kernel))  # type: ignore[arg-type]
            pair = (nn.Parameter(down.to(host.device)), nn.Parameter(up.to(host.device)))
            self._targets[target.name] = target
            self._parameters[f"{target.name}.lora_down.weight"] = pair[0]
            self._parameters[f"{target.name}.lora_up.weight"] = pair[1]
            mask = self._mask_of(target.name) if self._config.dropout > 0 else None
            self._branches[id(layer)] = Branch(*pair, self._scale(target), mask)
        if not self._targets:
            raise ValueError(
                f'trainable.layers "{self._config.layers}" with these rules chooses no layer of this model; '
                "choose a wider preset or remove the rules with rank 0"
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in files: (rank, in[, kh, kw]) and (out, rank[, 1, 1])."""
        return dict(self._parameters)

    def groups(self) -> dict[str, tuple[str | None, list[str]]]:
        """Group name -> (own schedule or None, parameter names): a group for each part and each rule with a rate."""
        groups: dict[str, tuple[str | None, list[str]]] = {}
        for target in self._targets.values():
            group = target.part if target.rate is None else f"{target.part} {target.rate}"
            names = groups.setdefault(group, (target.rate, []))[1]
            names += [f"{target.name}.lora_down.weight", f"{target.name}.lora_up.weight"]
        return groups

    def branch_of(self, layer: nn.Module) -> Branch | None:
        """The branch beside a layer, or None; asked at each forward."""
        return self._branches.get(id(layer)) if self._enabled else None

    @contextmanager
    def training(self, step: int, micro: int) -> Iterator[None]:
        """A forward and backward pass, inside: dropout is on, keyed by the pass, so that recomputing sees the same."""
        self._moment = (step, micro)
        try:
            yield
        finally:
            self._moment = None

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without the network, inside."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def export(self, values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The file's tensors, on the CPU, from parameter values by name (the live ones, or averaged ones)."""
        tensors = {name: value.detach().to("cpu", dtype) for name, value in values.items()}
        for target in self._targets.values():
            # readers divide by the rank, so a rank-stabilised scale is written as the alpha that gives it
            tensors[f"{target.name}.alpha"] = torch.tensor(self._scale(target) * target.rank, dtype=dtype)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters from a file's or a state's tensors.

        Errors: `ValueError` naming a layer that is missing, superfluous, or of another shape.
        """
        missing = sorted(self._parameters.keys() - tensors.keys())
        unknown = sorted(n for n in tensors.keys() - self._parameters.keys() if not n.endswith(".alpha"))
        for names, what in ((missing, "lacks"), (unknown, "has the unexpected")):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ValueError(f"the saved network {what} {names[0]}{more}; rank or layers differ from this run's")
        for name, parameter in self._parameters.items():
            if tensors[name].shape != parameter.shape:
                got, own = tuple(tensors[name].shape), tuple(parameter.shape)
                raise ValueError(f"{name} is {got} in the saved network and {own} in this run; the ranks differ")
            with torch.no_grad():
                parameter.copy_(tensors[name])

    def delta(self, name: str) -> Tensor:
        """The update of a layer's weight, float32, of the weight's shape."""
        target = self._targets[name]
        down, up = (self._parameters[f"{name}.lora_{half}.weight"].detach() for half in ("down", "up"))
        return self._scale(target) * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])

    def layer_names(self) -> dict[str, nn.Module]:
        """The layers that carry an adapter, by their names in files."""
        return {name: target.layer for name, target in self._targets.items()}

    def metadata(self) -> dict[str, str]:
        """`ss_*` keys that other programs read about the network."""
        args = (
            {"conv_dim": self._config.conv_rank, "conv_alpha": self._config.conv_alpha}
            if self._config.conv_rank
            else {}
        )
        return {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self._config.rank),
            "ss_network_alpha": str(self._config.alpha),
            "ss_network_dropout": str(self._config.dropout) if self._config.dropout else "None",
            "ss_network_args": "{" + ", ".join(f'"{k}": "{v}"' for k, v in args.items()) + "}",
        }

    def _scale(self, target: _Target) -> float:
        return target.alpha / (math.sqrt(target.rank) if self._config.rank_stabilized else target.rank)

    def _mask_of(self, name: str) -> Callable[[Tensor], Tensor | None]:
        keep = 1 - self._config.dropout

        def mask(product: Tensor) -> Tensor | None:
            if self._moment is None:
                return None
            step, micro = self._moment
            generator = torch.Generator().manual_seed(key(self._seed, name, step, f"dropout {micro}"))
            return torch.rand(product.shape, generator=generator).lt_(keep).div_(keep).to(product)

        return mask


def _chosen(host: Host, config: TrainableConfig) -> Iterator[_Target]:
    names = SPELLINGS.get(host.family)()  # type: ignore[operator]
    kinds = _KINDS[config.layers] | ({"block"} if config.conv_rank else set())
    for part, root in host.parts.items():
        if part != "unet" and not config.text_encoder:
            continue
        for module_name, layer in root.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)) or names.kind(part, module_name) not in kinds:
                continue
            spatial = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
            rank = (config.conv_rank or config.rank) if spatial else config.rank
            alpha = config.conv_alpha if spatial and config.conv_rank else config.alpha
            rate = None
            name = names.file_name(part, module_name)
            for rule in config.rules:
                if fnmatch.fnmatchcase(name, rule.layers):
                    rank = rank if rule.rank is None else rule.rank
                    rate = rate if rule.rate is None else rule.rate
            if rank:
                yield _Target(name, part, layer, rank, alpha, rate)
