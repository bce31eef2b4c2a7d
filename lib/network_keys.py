"""The layers of a network, told by the keys and shapes in its file: which algorithm, rank, size and model family."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

# What follows a layer's name, by algorithm. PEFT and diffusers have their own words for down and up.
DOWN = r"(?:lora_down|lora_A(?:\.\w+)?|lora\.down|lora_linear_layer\.down)\.weight"
UP = r"(?:lora_up|lora_B(?:\.\w+)?|lora\.up|lora_linear_layer\.up)\.weight"
_SUFFIX = re.compile(
    rf"(?P<lora>lora_mid\.weight|{DOWN}|{UP})"
    r"|(?P<loha>hada_(?:w[12]_[ab]|t[12]))"
    r"|(?P<lokr>lokr_(?:w[12](?:_[ab])?|t[12]))"
    r"|(?P<glora>[ab][12]\.weight)"
    r"|(?P<oft>oft_blocks|oft_diag)"
    r"|(?P<full_difference>diff|diff_b)"
    # these stand beside an algorithm's own
    r"|(?P<extra>alpha|dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)"
)
_DORA = re.compile(r"dora_scale|lora_magnitude_vector.*")
# The factors of an update: it is nothing where one of them is zero.
_FACTOR = re.compile(rf"{UP}|hada_w[12]_[ab]|diff")

_BLOCK = re.compile(
    r"(?:down_blocks|up_blocks|input_blocks|output_blocks|double_blocks|single_blocks|joint_blocks|encoder_layers"
    r"|single_transformer_blocks|transformer_blocks)_\d+|mid_block|middle_block"
)
_PART = re.compile(
    r"(lora_unet|lora_te\d?|lora_transformer|unet|text_encoder(?:_\d)?|transformer|diffusion_model)[._](.+)"
)
_PARTS = {"text_encoder": "te", "text_encoder_2": "te2", "text_encoder_3": "te3", "diffusion_model": "unet"}
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


@dataclass(frozen=True)
class Layer:
    """One adapted layer. `rank` is None where the update is not low-rank, `alpha` where the file has none."""

    name: str  # as in the file
    algorithm: str  # lora, loha, lokr, glora, oft or full_difference
    dora: bool  # its magnitudes are trained apart (weight-decomposed)
    rank: int | None
    alpha: float | None
    num_out: int | None  # sizes of the weight it changes; None where the keys do not tell
    num_in: int | None  # with the kernel multiplied in
    kernel: tuple[int, ...]  # () for Linear
    num_params: int
    no_effect: bool  # its update is exactly zero

    @property
    def part(self) -> str:
        """unet, te, te1, te2, te3 or transformer; empty where the name does not say."""
        match = _PART.fullmatch(self.name)
        return _PARTS.get(match[1], match[1].removeprefix("lora_")) if match else ""

    @property
    def block(self) -> str:
        """Such as down_blocks_1; empty where the name does not say."""
        match = _BLOCK.search(self.name.replace(".", "_"))
        return match.group() if match else ""


def layers_of(
    shapes: Shapes, alphas: Mapping[str, float], zeros: Collection[str]
) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The layers of a network, sorted by name, and the keys that belong to none.

    `shapes`: key -> shape of every tensor in the file; `alphas`: key that ends in .alpha -> its value; `zeros`: keys of
    tensors that are zero throughout.
    """
    own: dict[str, dict[str, str]] = {}  # layer -> suffix -> algorithm
    for key in shapes:
        name, suffix, kind = _split(key)
        if kind:
            own.setdefault(name, {})[suffix] = kind
    algorithms = {n: next((k for k in kinds.values() if k != "extra"), "") for n, kinds in own.items()}
    layers = tuple(_layer(n, a, own[n], shapes, alphas, zeros) for n, a in sorted(algorithms.items()) if a)
    return layers, tuple(key for key in shapes if not algorithms.get(_split(key)[0]))


def _split(key: str) -> tuple[str, str, str]:
    """(layer, suffix, algorithm) of a key; the last two empty where it is of no network."""
    # the longest suffix counts, so the name is tried from its first dot on
    for dot in (i for i, c in enumerate(key) if c == "."):
        match = _SUFFIX.fullmatch(key, dot + 1)
        if match:
            return key[:dot], key[dot + 1 :], match.lastgroup or ""
    return key, "", ""


def _layer(
    name: str,
    algorithm: str,
    suffixes: Iterable[str],
    shapes: Shapes,
    alphas: Mapping[str, float],
    zeros: Collection[str],
) -> Layer:
    own = {suffix: shapes[f"{name}.{suffix}"] for suffix in suffixes}
    rank, num_out, num_in, kernel = _sizes(algorithm, {_plain(suffix): shape for suffix, shape in own.items()})
    return Layer(
        name=name,
        algorithm=algorithm,
        dora=any(_DORA.fullmatch(suffix) for suffix in own),
        rank=rank,
        alpha=alphas.get(f"{name}.alpha"),
        num_out=num_out,
        num_in=num_in,
        kernel=kernel,
        num_params=sum(math.prod(shape) for suffix, shape in own.items() if suffix != "alpha"),
        no_effect=any(_FACTOR.fullmatch(suffix) and f"{name}.{suffix}" in zeros for suffix in own),
    )


def algorithm_of(layers: Collection[Layer]) -> str:
    """In words: "lora", "lora, with 3x3 convolutions (locon), weight-decomposed (dora)"; empty without layers."""
    words = [" and ".join(sorted({layer.algorithm.replace("_", " ") for layer in layers}))]
    words += ["with 3x3 convolutions (locon)"] if any(math.prod(layer.kernel) > 1 for layer in layers) else []
    words += ["weight-decomposed (dora)"] if any(layer.dora for layer in layers) else []
    return ", ".join(words)


def family_of(layers: Iterable[Layer], metadata: Mapping[str, str]) -> tuple[str, str]:
    """(family, what tells it). Widths of the cross attention tell most; then names; then what the metadata says."""
    flat = {layer.name.replace(".", "_"): layer for layer in layers}
    names = "\n".join(flat)
    for family, pattern in (
        ("flux", r"double_blocks_\d|single_blocks_\d|single_transformer_blocks_\d"),
        ("sd3", r"joint_blocks_\d|add_q_proj|ff_context|context_block"),
    ):
        if re.search(pattern, names):
            return family, "names of its layers"
    for name, layer in flat.items():
        if re.search(r"attn2_to_[kv]$", name) and layer.num_in in _WIDTHS:
            return _WIDTHS[layer.num_in], f"text width {layer.num_in}"
        if re.match(r"(lora_)?(transformer|unet)_transformer_blocks_\d+_attn_to_[qkv]$", name):
            family = {1536: "sd3", 2432: "sd3", 3072: "flux"}.get(layer.num_in or 0)
            if family:
                return family, f"width {layer.num_in} of its attention"
    if re.search(r"lora_te2_|text_encoder_2_|input_blocks_\d|output_blocks_\d", names):
        return "sdxl", "names of its layers"
    for name, layer in flat.items():
        if re.search(r"self_attn_[qkv]_proj$", name) and layer.num_in in (768, 1024):
            return _WIDTHS[layer.num_in], f"text encoder width {layer.num_in}"
    said = f"{metadata.get('modelspec.architecture', '')} {metadata.get('ss_base_model_version', '')}".lower()
    for family, pattern in (
        ("sdxl", r"xl"),
        ("sd3", r"diffusion-v?3|sd_?v?3"),
        ("flux", r"flux"),
        ("sd2", r"diffusion-v2|sd_?v?2"),
        ("sd1", r"diffusion-v1|sd_?v?1"),
    ):
        if re.search(pattern, said):
            return family, "its metadata"
    return ("sd1 or sd2", "names of its layers") if re.search(r"(down|up)_blocks_\d", names) else ("", "")


def _plain(suffix: str) -> str:
    if re.fullmatch(DOWN, suffix):
        return "down"
    return "up" if re.fullmatch(UP, suffix) else suffix


def _sizes(algorithm: str, shapes: Shapes) -> tuple[int | None, int | None, int | None, tuple[int, ...]]:
    """(rank, outputs, inputs with the kernel multiplied in, kernel) of an update; None where the keys do not tell."""
    shapes = {suffix: shape for suffix, shape in shapes.items() if len(shape) >= 2}  # no factor of a matrix has fewer
    if algorithm == "lora" and "down" in shapes and "up" in shapes:
        down, up, mid = shapes["down"], shapes["up"], shapes.get("lora_mid.weight", ())
        kernel = (mid or down)[2:]
        return down[0], up[0], math.prod(down[1:2]) * math.prod(kernel), kernel
    if algorithm == "loha" and "hada_w1_a" in shapes and "hada_w1_b" in shapes:
        a, b, core = shapes["hada_w1_a"], shapes["hada_w1_b"], shapes.get("hada_t1")
        if core:  # Tucker form: (rank, outputs) and (rank, inputs) around a core with the kernel
            return b[0], a[-1], b[-1] * math.prod(core[2:]), core[2:]
        return b[0], a[0], math.prod(b[1:]), ()
    if algorithm == "lokr":
        ranks = [shapes[k][0] for k in ("lokr_w2_b", "lokr_w1_b") if k in shapes]
        first, second = _kronecker(shapes, "lokr_w1"), _kronecker(shapes, "lokr_w2")
        if first and second:
            return (ranks or [None])[0], first[0] * second[0], first[1] * second[1], shapes.get("lokr_w2", ())[2:]
        return (ranks or [None])[0], None, None, ()
    if algorithm == "full_difference" and "diff" in shapes:
        diff = shapes["diff"]
        return None, diff[0], math.prod(diff[1:]), diff[2:]
    return None, None, None, ()


def _kronecker(shapes: Shapes, factor: str) -> tuple[int, int] | None:
    """(rows, columns with the kernel) of a Kronecker factor, whole or in two parts."""
    whole, a, b = (shapes.get(factor + end) for end in ("", "_a", "_b"))
    if whole:
        return whole[0], math.prod(whole[1:])
    core = shapes.get(factor.replace("w", "t"))
    if a and b and core:
        return a[-1], b[-1] * math.prod(core[2:])
    return (a[0], math.prod(b[1:])) if a and b else None
