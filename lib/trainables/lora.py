"""LoRA on Linear layers and convolutions (LoCon).

W' = W + scale * up @ down with scale = alpha / rank (Hu et al. 2021, arXiv:2106.09685), or alpha / sqrt(rank) when rank
stabilised (Kalajdzievski 2023, arXiv:2312.03732). An adapter belongs to a canonical layer (`keys.family`): where a host
splits such a layer, its modules share down and have their rows of up, which is the same product. So the state of a run
is the same in every host: `<kohya's name>.lora_down.weight` and `<kohya's name>.lora_up.weight`.
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
from ..keys.layers import CanonicalLayer, Member, canonical_layers
from ..keys.published import Adapter, adapters_in, published
from ..registry import ALGORITHMS

_KINDS = {
    "attention": {"attention"},
    "attention_mlp": {"attention", "mlp"},
    "kohya": {"attention", "mlp", "projection"},
    "all": {"attention", "mlp", "projection", "block"},
}
# the file of sd-scripts that reads a network of this family
_KOHYA_MODULES = {"sd3": "networks.lora_sd3", "flux": "networks.lora_flux"}


@dataclass(frozen=True)
class _Target:
    """A canonical layer that gets an adapter."""

    layer: CanonicalLayer
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
        self._members: dict[int, tuple[str, Member]] = {}  # id of a module -> its canonical layer
        self._masks: dict[str, Callable[[Tensor], Tensor | None]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._moment: tuple[int, int] | None = None
        self._enabled = True
        self._strength = 1.0

    def prepare(self, host: Host) -> None:
        """Choose layers of the host's model and make their parameters on its device.

        down is Kaiming-uniform with a = sqrt(5), seeded by the layer's name, so that neither the host nor the other
        layers change it; up is zero, so that training starts from the model as it is.
        Errors: `ValueError` when the settings choose no layer, or one of which a part is missing.
        """
        self._family = host.family
        for target in _chosen(host, self._config):
            layer, kernel = target.layer, target.layer.kernel or ()
            down = torch.empty(target.rank, layer.num_in, *kernel)
            generator = torch.Generator().manual_seed(key(self._seed, layer.name, 0, "init"))
            bound = 1 / math.sqrt(down[0].numel())
            down.uniform_(-bound, bound, generator=generator)
            up = torch.zeros(layer.num_out, target.rank, *(1 for _ in kernel))
            self._targets[layer.name] = target
            self._parameters[f"{layer.name}.lora_down.weight"] = nn.Parameter(down.to(host.device))
            self._parameters[f"{layer.name}.lora_up.weight"] = nn.Parameter(up.to(host.device))
            self._members |= {id(member.module): (layer.name, member) for member in layer.members}
            if self._config.dropout > 0:
                self._masks[layer.name] = self._mask_of(layer.name)
        if not self._targets:
            raise ValueError(
                f'trainable.layers "{self._config.layers}" with these rules chooses no layer of this model; '
                "choose a wider preset or remove the rules with rank 0"
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by canonical name: (rank, in[, kh, kw]) and (out, rank[, 1, 1])."""
        return dict(self._parameters)

    def groups(self) -> dict[str, tuple[str | None, list[str]]]:
        """Group name -> (own schedule or None, parameter names): a group for each part and each rule with a rate."""
        groups: dict[str, tuple[str | None, list[str]]] = {}
        for name, target in self._targets.items():
            part = target.layer.part
            group = part if target.rate is None else f"{part} {target.rate}"
            names = groups.setdefault(group, (target.rate, []))[1]
            names += [f"{name}.lora_down.weight", f"{name}.lora_up.weight"]
        return groups

    def branch_of(self, layer: nn.Module) -> Branch | None:
        """The branch beside a module, or None; asked at each forward, since rows of up are a view for autograd."""
        if not self._enabled or id(layer) not in self._members:
            return None
        name, member = self._members[id(layer)]
        down, up = self._pair(name)
        # the whole of up is the parameter itself, so that autograd need not fill a gradient with zeros around rows
        whole = len(self._targets[name].layer.members) == 1 and not member.swapped
        scale = self._strength * self._scale(name)
        return Branch(down, up if whole else member.own(up), scale, self._masks.get(name))

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

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """The network so many times as strong, inside."""
        before, self._strength = self._strength, strength
        try:
            yield
        finally:
            self._strength = before

    def export(self, values: Mapping[str, Tensor], dtype: torch.dtype, names: str = "family") -> dict[str, Tensor]:
        """The file's tensors, on the CPU, from parameter values by name (the live ones, or averaged ones).

        `names`: "family" for the names that most programs read for this family, or "kohya" (`keys.published`).
        """
        adapters = {
            name: Adapter(values[f"{name}.lora_down.weight"], values[f"{name}.lora_up.weight"], self._scale(name))
            for name in self._targets
        }
        return published(self._family, adapters, dtype, names)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters from a state's tensors, or from a file's in any spelling, whatever its alpha.

        Errors: `ValueError` naming a layer that is missing, superfluous, or of another shape.
        """
        if not any(name in tensors for name in self._parameters):
            tensors = self._canonical(tensors)
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
        for name in self._targets:
            if f"{name}.alpha" in tensors:
                with torch.no_grad():
                    self._pair(name)[1].mul_(self._factor(name, tensors[f"{name}.alpha"]))

    def delta(self, name: str) -> Tensor:
        """The update of a layer's weight, float32, of the weight's shape."""
        down, up = (half.detach() for half in self._pair(name))
        return self._scale(name) * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])

    def layer_names(self) -> dict[str, tuple[Member, ...]]:
        """The layers that carry an adapter, by canonical name: the modules that hold their outputs."""
        return {name: target.layer.members for name, target in self._targets.items()}

    def metadata(self) -> dict[str, str]:
        """`ss_*` keys that other programs read about the network."""
        args = (
            {"conv_dim": self._config.conv_rank, "conv_alpha": self._config.conv_alpha}
            if self._config.conv_rank
            else {}
        )
        return {
            "ss_network_module": _KOHYA_MODULES.get(self._family, "networks.lora"),
            "ss_network_dim": str(self._config.rank),
            "ss_network_alpha": str(self._config.alpha),
            "ss_network_dropout": str(self._config.dropout) if self._config.dropout else "None",
            "ss_network_args": "{" + ", ".join(f'"{k}": "{v}"' for k, v in args.items()) + "}",
        }

    def _pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        return self._parameters[f"{name}.lora_down.weight"], self._parameters[f"{name}.lora_up.weight"]

    def _canonical(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under canonical names."""
        adapters, unknown = adapters_in(self._family, tensors)
        found = {name: tensors[name] for name in unknown}
        for name, adapter in adapters.items():
            found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = adapter.down, adapter.up
            found[f"{name}.alpha"] = torch.tensor(adapter.scale * adapter.down.shape[0], dtype=torch.float64)
        return found

    def _factor(self, name: str, alpha: Tensor) -> float:
        """What an up of that alpha is multiplied by to have this run's scale."""
        own = self._scale(name) * self._targets[name].rank
        # a file rounds alpha to its dtype, which is no other alpha
        return 1.0 if alpha.item() == torch.tensor(own, dtype=alpha.dtype).item() else alpha.item() / own

    def _scale(self, name: str) -> float:
        target = self._targets[name]
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
    kinds = _KINDS[config.layers] | ({"block"} if config.conv_rank else set())
    trained = {part: root for part, root in host.parts.items() if part == "unet" or config.text_encoder}
    if not config.t5:
        trained.pop("te3", None)
    for layer in canonical_layers(host.family, trained).values():
        if layer.kind not in kinds:
            continue
        spatial = layer.kernel is not None and layer.kernel != (1, 1)
        rank = (config.conv_rank or config.rank) if spatial else config.rank
        alpha = config.conv_alpha if spatial and config.conv_rank else config.alpha
        rate = None
        for rule in config.rules:
            if fnmatch.fnmatchcase(layer.name, rule.layers):
                rank = rank if rule.rank is None else rule.rank
                rate = rate if rule.rate is None else rule.rate
        if rank:
            yield _Target(layer, rank, alpha, rate)
