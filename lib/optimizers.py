"""Optimizers by name, with a state that is kept under the names of the parameters.

Every parameter is float32. The learning rate comes from the schedule at each step and is no part of the state.
"""

# pyright: reportPrivateImportUsage=false
# torch documents its _foreach functions and marks them private

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from .config import OptimizerConfig
from .registry import OPTIMIZERS

T = TypeVar("T")


class Group(TypedDict):
    """Parameters that share a rate. `names` are the parameters' names in the file, in the same order."""

    params: list[nn.Parameter]
    names: list[str]
    lr: float


class Optimizer:
    """An optimizer over named parameters.

    `set_rates`, `step` and `zero_grad` train, `state` and `restore` resume. An entry overrides `build`, and says below
    what its torch optimizer keeps beside the usual moments.
    """

    library: ClassVar[str | None] = None  # the package that must be installed
    one_rate: ClassVar[bool] = False  # whether all groups must have the same rate, or 0
    group_values: ClassVar[tuple[str, ...]] = ()  # numbers of a parameter group that change during training
    weight_copies: ClassVar[tuple[str, ...]] = ()  # state that starts as a copy of the weights, not as zeros
    constants: ClassVar[tuple[str, ...]] = ()  # state that never changes and that every run makes for itself

    def __init__(self, name: str, groups: Sequence[Group], config: OptimizerConfig) -> None:
        if self.library and importlib.util.find_spec(self.library) is None:
            raise ValueError(
                f'optimizer "{name}" needs the package {self.library}; install it, or choose another optimizer'
            )
        self.name = name
        self.names: dict[nn.Parameter, str] = {}
        for group in groups:
            assert len(group["params"]) == len(group["names"])
            self.names.update(zip(group["params"], group["names"], strict=True))
        assert len(set(self.names.values())) == sum(len(g["params"]) for g in groups), "a parameter is named twice"
        assert all(p.dtype == torch.float32 for p in self.names), "what is trained is float32"
        self.inner = self.build([{"params": g["params"], "lr": g["lr"]} for g in groups], config)

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        """The torch optimizer. Errors: `ValueError` on a setting that it cannot serve."""
        raise NotImplementedError

    def set_rates(self, rates: Sequence[float]) -> None:
        """The learning rate of each group for the next step. Errors: `ValueError` when `one_rate` and they differ."""
        if self.one_rate and len(set(rates) - {0.0}) > 1:
            raise ValueError(
                f'optimizer "{self.name}" finds one step size for everything that is trained: all rates must be equal '
                f"or 0, got {', '.join(map(str, rates))}; give every part the same schedule"
            )
        for group, rate in zip(self.inner.param_groups, rates, strict=True):
            group["lr"] = rate

    def step(self) -> None:
        """One update from the gradients. The gradients may be overwritten."""
        self.allocate()
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)

    @torch.no_grad()
    def allocate(self) -> None:
        """Make the state and the step's own buffers now, so that running out of memory cannot strike inside a step.

        A step is rehearsed with zero gradients at rate 0 and undone: weights, gradients and rates are what they were,
        and the state is that of an optimizer that never stepped. To be called once the weights have their starting
        values (some states begin as a copy of them); later calls do nothing.
        """
        if any(self.inner.state.values()):
            return
        groups = [dict(group) for group in self.inner.param_groups]
        kept = [(p, p.detach().clone(), p.grad) for p in self.names]
        try:
            for group in self.inner.param_groups:
                group.update(lr=0.0, weight_decay=0.0)
            for parameter in self.names:
                parameter.grad = torch.zeros_like(parameter)
            self.inner.step()
        finally:
            for group, values in zip(self.inner.param_groups, groups, strict=True):
                group.clear()
                group.update(values)
            for parameter, weight, grad in kept:
                parameter.copy_(weight)
                parameter.grad = grad
        for state in self.inner.state.values():
            for key, value in state.items():
                if key in self.weight_copies or key in self.constants:
                    continue
                state[key] = value.zero_() if isinstance(value, Tensor) else type(value)(0)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on beside the weights: tensors by "<parameter>.<key>", and JSON values.

        The tensors are the live ones, not copies: write them before the next step.
        """
        self.allocate()
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for parameter, name in self.names.items():
            for key, value in self.inner.state[parameter].items():
                if key in self.constants:
                    continue
                if isinstance(value, Tensor):
                    tensors[f"{name}.{key}"] = value.detach()
                else:
                    numbers.setdefault(name, {})[key] = value
        groups = []
        if self.group_values:
            for group in self.inner.param_groups:
                names = [self.names[p] for p in group["params"]]
                groups.append({"names": names, "values": {key: group[key] for key in self.group_values}})
        return tensors, {"optimizer": self.name, "parameters": numbers, "groups": groups}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the weights are restored by their owner, before this.

        Groups may be cut differently, as long as parameters with different histories are not put together.
        Errors: `ValueError` naming what is missing, unexpected, or of another shape; nothing is changed then.
        """
        if values.get("optimizer") != self.name:
            raise ValueError(f'the saved state is of optimizer "{values.get("optimizer")}", not of "{self.name}"')
        own, own_values = self.state()
        _check_same_keys("the state of the optimizer", own, tensors)
        for key, value in own.items():
            saved = tensors[key]
            # a weight that was all zero may have been copied as one zero
            shrunk = key.rpartition(".")[2] in self.weight_copies and 0 in (saved.ndim, value.ndim)
            if saved.dtype != value.dtype or (saved.shape != value.shape and not shrunk):
                raise ValueError(f"the state of the optimizer has {_shown(saved)} for {key}, expected {_shown(value)}")
        numbers = values.get("parameters", {})
        for name, expected in own_values["parameters"].items():
            _check_same_keys(f"the state of the optimizer for {name}", expected, numbers.get(name, {}))
        histories = [self._history(group, values.get("groups", ())) for group in own_values["groups"]]

        for parameter, name in self.names.items():
            state = self.inner.state[parameter]
            for key, value in state.items():
                if key in self.constants:
                    continue
                if not isinstance(value, Tensor):
                    state[key] = type(value)(numbers[name][key])
                elif value.shape == tensors[f"{name}.{key}"].shape:
                    value.copy_(tensors[f"{name}.{key}"])  # in place: device and memory layout stay
                else:
                    state[key] = tensors[f"{name}.{key}"].to(value.device, copy=True)
        for group, history in zip(self.inner.param_groups, histories, strict=bool(histories)):
            group.update(history)

    def _history(self, group: Mapping[str, Any], saved: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The saved numbers of the groups that these parameters were in, which must agree."""
        by_name = {name: other["values"] for other in saved for name in other["names"]}
        missing = [name for name in group["names"] if name not in by_name]
        if missing:
            raise ValueError(f"the state of the optimizer lacks the group of {_listed(missing)}")
        first = group["names"][0]
        history = by_name[first]
        _check_same_keys(f"the state of the optimizer for the group of {first}", group["values"], history)
        for name in group["names"]:
            if by_name[name] != history:
                raise ValueError(
                    f"{first} and {name} were trained in groups with different histories and cannot share one now; "
                    "keep the groups of the run, or start the optimizer afresh"
                )
        return history

    @torch.no_grad()
    def published(self, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The weights to publish, as copies by name. The live weights are not touched."""
        return {name: parameter.detach().clone() for name, parameter in params.items()}


def create(name: str, groups: Sequence[Group], config: OptimizerConfig) -> Optimizer:
    """The optimizer called `name` over `groups`.

    Errors: `ValueError` on an unknown name, a library that is missing, and a setting that the optimizer cannot serve.
    """
    return cast(type[Optimizer], OPTIMIZERS.get(name))(name, groups, config)


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """Loshchilov & Hutter 2019, arXiv:1711.05101; torch's own. beta1 0.9, beta2 0.999, eps 1e-8 unless set."""

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, foreach=True, **_adam_settings(config))


@OPTIMIZERS.register("adamw8bit")
class AdamW8bit(Optimizer):
    """AdamW with moments in 8 bits, Dettmers et al. 2022, arXiv:2110.02861; small parameters keep 32 bits."""

    library = "bitsandbytes"
    constants = ("qmap1", "qmap2")

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit(groups, **_adam_settings(config))


@OPTIMIZERS.register("prodigy")
class Prodigy(Optimizer):
    """Mishchenko & Defazio 2023, arXiv:2306.06101: finds the step size d itself; the rate is a factor on it, usually 1.

    With the bias correction and the guard for warm-ups that its authors advise for diffusion models.
    """

    library = "prodigyopt"
    one_rate = True
    group_values = ("k", "d", "d_max", "d_numerator")
    weight_copies = ("p0",)

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        from prodigyopt import Prodigy

        settings = _adam_settings(config)
        if settings["eps"] == 0:
            raise ValueError('optimizer.eps must be above 0 for optimizer "prodigy", got 0')
        # given by group, since the library prints a line when it is given for all
        weight_decay = settings.pop("weight_decay")
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
        return Prodigy(groups, lr=1.0, use_bias_correction=True, safeguard_warmup=True, **settings)

    def step(self) -> None:
        self.allocate()
        for group in self.inner.param_groups:
            if group["lr"] == 0:
                # the library would go on moving these by their old moments, at the other groups' rate
                for parameter in group["params"]:
                    parameter.grad = None
        self.inner.step()


@OPTIMIZERS.register("adamw_schedulefree")
class AdamWScheduleFree(Optimizer):
    """Defazio et al. 2024, arXiv:2405.15682: the published weights are an average x of the iterates z.

    Gradients are taken at y, between x and z, and y is what the live parameters hold. At rate 0 z rests, while x and y
    still move towards it.
    """

    library = "schedulefree"
    group_values = ("k", "lr_max", "weight_sum")
    weight_copies = ("z",)

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        from schedulefree import AdamWScheduleFree

        settings = _adam_settings(config)
        if settings["betas"][0] == 0:
            raise ValueError('optimizer.beta1 must be above 0 for optimizer "adamw_schedulefree", got 0')
        optimizer = AdamWScheduleFree(groups, **settings)
        optimizer.train()
        return optimizer

    @torch.no_grad()
    def published(self, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """x, from y = (1 - beta1) z + beta1 x."""
        self.allocate()
        beta1 = self.inner.param_groups[0]["betas"][0]
        return {name: torch.lerp(p, self.inner.state[p]["z"], 1 - 1 / beta1) for name, p in params.items()}


@OPTIMIZERS.register("lion")
class Lion(Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2, which asks for a third to a tenth of AdamW's rate.

    beta1 0.9, beta2 0.99 unless set.
    """

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        betas = (_given(config.beta1, 0.9), _given(config.beta2, 0.99))
        return _Lion(groups, {"betas": betas, "weight_decay": config.weight_decay})


class _Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            grads = [p.grad for p in parameters]
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            moments = [self.state[p]["exp_avg"] for p in parameters]
            beta1, beta2 = group["betas"]
            updates = torch._foreach_mul(moments, beta1)
            torch._foreach_add_(updates, grads, alpha=1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])
            torch._foreach_mul_(moments, beta2)
            torch._foreach_add_(moments, grads, alpha=1 - beta2)


@OPTIMIZERS.register("adafactor")
class Adafactor(Optimizer):
    """Shazeer & Stern 2018, arXiv:1804.04235, at the schedule's rate: neither relative steps nor a first moment.

    The second moment of a matrix is kept as its row and column means, its decay is 1 - step^-0.8, and updates are
    clipped to a root mean square of 1. eps (1e-30 unless set) is added to the squared gradient.
    """

    def build(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
        for key in ("beta1", "beta2"):
            value = getattr(config, key)
            if value:
                raise ValueError(
                    f'optimizer.{key} has no meaning for optimizer "adafactor", got {value}; leave it empty'
                )
        return _Adafactor(groups, {"eps": _given(config.eps, 1e-30), "weight_decay": config.weight_decay})


class _Adafactor(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["eps"], group["weight_decay"])

    def _update(self, p: Tensor, grad: Tensor, rate: float, eps: float, weight_decay: float) -> None:
        state = self.state[p]
        if not state:
            state["step"] = 0
            if grad.ndim >= 2:
                state["exp_avg_sq_row"] = grad.new_zeros(grad.shape[:-1])
                state["exp_avg_sq_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
            else:
                state["exp_avg_sq"] = torch.zeros_like(grad)
        state["step"] += 1
        new = state["step"] ** -0.8
        square = grad.square() + eps
        if grad.ndim >= 2:
            row = state["exp_avg_sq_row"].mul_(1 - new).add_(square.mean(-1), alpha=new)
            col = state["exp_avg_sq_col"].mul_(1 - new).add_(square.mean(-2), alpha=new)
            update = (row / row.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * col.rsqrt().unsqueeze(-2) * grad
        else:
            update = state["exp_avg_sq"].mul_(1 - new).add_(square, alpha=new).rsqrt() * grad
        update /= update.square().mean().sqrt().clamp(min=1)
        p.mul_(1 - rate * weight_decay).sub_(update, alpha=rate)


def _adam_settings(config: OptimizerConfig) -> dict[str, Any]:
    betas = (_given(config.beta1, 0.9), _given(config.beta2, 0.999))
    return {"betas": betas, "eps": _given(config.eps, 1e-8), "weight_decay": config.weight_decay}


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _check_same_keys(what: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    missing, unexpected = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing:
        raise ValueError(f"{what} lacks {_listed(missing)}")
    if unexpected:
        raise ValueError(f"{what} has {_listed(unexpected)}, which this run does not train")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
