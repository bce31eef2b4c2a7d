"""What the names of every model family have in common: three spellings of a layer, and what a layer is.

Modules are spelled as diffusers and transformers spell them ("split"), or as the model's first code does ("original"),
which checkpoints in one file, ComfyUI and the WebUI keep. Files have kohya's names or those of diffusers.

What gets one adapter is a *canonical layer*, the same in every program: the original fused layer in the denoisers of
Flux and Stable Diffusion 3, each split layer elsewhere. It is always called by kohya's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from .table import Original, Table


@dataclass(frozen=True)
class Place:
    """Where a module stands: it holds the `index`-th of `count` slices of the outputs of a canonical layer."""

    name: str  # kohya's
    index: int
    count: int
    kind: str | None  # attention, mlp, projection or block; None outside the blocks


class Family:
    """Names of one family. A part is "unet" (the denoiser, also where it is a transformer) or a text encoder."""

    title: ClassVar[str]
    prefixes: ClassVar[dict[str, str]]  # part -> what kohya's names begin with
    diffusers: ClassVar[dict[str, str]]  # part -> the folder of a pipeline that it is in
    kinds: ClassVar[dict[str, dict[str, str]]]  # part -> kind -> pattern; the first that is found counts
    published: ClassVar[frozenset[str]] = frozenset()  # parts whose files have the names of diffusers
    kohya_is_original: ClassVar[bool] = True  # kohya names the denoiser's layers as the original does
    tables: dict[str, Table]  # part -> its layers

    def fitted(self, part: str, module_names: Collection[str]) -> Family:
        """This family for a model of these layers, where its names depend on how many blocks there are."""
        return self

    def place(self, part: str, module_name: str) -> Place:
        """Where a module stands, in either spelling.

        Errors: `ValueError` for a part or a layer that this family does not have.
        """
        layer, split = self._found(part, module_name)
        kind = self._kind(part, split[0])
        if part == "unet" and self.kohya_is_original:
            return Place(self._flat(part, layer.name), layer.index, layer.count, kind)
        if layer.count == 1 and len(split) > 1:
            raise ValueError(
                f'"{module_name}" of the {part} of {self.title} is {len(split)} layers with an adapter each; '
                f"give them one by one, as {split[0]} and so on"
            )
        return Place(self._flat(part, split[layer.index]), 0, 1, kind)

    def place_in_file(self, name: str) -> tuple[str, str] | None:
        """(part, module name in either spelling) of a layer's name in a file, without the suffix; None if unknown.

        Read are kohya's names, on split and on original layers, those of diffusers (`transformer.`, `text_encoder_2.`)
        and original names below `diffusion_model.`, as ComfyUI writes them.
        """
        flat = {prefix: part for part, prefix in self.prefixes.items()} | {"lora_transformer_": "unet"}
        dots = {f"{folder}.": part for part, folder in self.diffusers.items()}
        dots |= {"unet.": "unet", "transformer.": "unet", "diffusion_model.": "unet"}
        for prefix, part in (*flat.items(), *dots.items()):
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                found = self._dotted(part, rest) if prefix in flat else self.spelled_out(part, rest)
                return (part, found) if found is not None and self._look_up(part, found) else None
        return None

    def file_name(self, part: str, module_name: str) -> str:
        """The name of a split layer in files; the same for all layers that share one adapter there.

        Errors: as `place`.
        """
        if part in self.published:
            return f"{self.diffusers[part]}.{self.spelled_out(part, module_name)}"
        return self.kohya_name(part, module_name)

    def kohya_name(self, part: str, module_name: str) -> str:
        """Kohya's name of a layer, or of the original layer that it is a slice of. Errors: as `place`."""
        return self.place(part, module_name).name

    def original_name(self, part: str, module_name: str) -> Original:
        """The original layer that a split layer is, or is a slice of (`table.output_slices`). Errors: as `place`."""
        self._check(part)
        original = self.tables[part].original(self.spelled_out(part, module_name))
        if original is None:
            raise ValueError(f'"{module_name}" is no known layer of the {part} of {self.title}')
        return original

    def split_names(self, part: str, original_name: str) -> tuple[str, ...]:
        """The layers that an original layer concatenates along its outputs, in order; mostly a single one.

        Text encoders are spelled with `text_model.`, as in files. Errors: as `place`.
        """
        self._check(part)
        names = self.tables[part].split(original_name)
        if names is None:
            raise ValueError(f'"{original_name}" is no known original layer of the {part} of {self.title}')
        return names

    def held(self, part: str, module_name: str) -> tuple[str, ...]:
        """The split layers that a module in either spelling is, in order. Errors: as `place`."""
        layer, split = self._found(part, module_name)
        return split if layer.count == 1 else split[layer.index : layer.index + 1]

    def siblings(self, part: str, module_name: str) -> tuple[str, ...]:
        """The split layers that together are the canonical layer of a module, in order. Errors: as `place`."""
        layer, split = self._found(part, module_name)
        return split if part == "unet" and self.kohya_is_original else split[layer.index : layer.index + 1]

    def widths(self, part: str, split: tuple[str, ...], num_inputs: int) -> tuple[int, ...] | None:
        """Outputs of each of several split layers that share an original layer, from its inputs; None for a single one.

        The attention of these models is as wide as its input.
        """
        return (num_inputs,) * len(split) if len(split) > 1 else None

    def halves_swapped(self, part: str, module_name: str, num_outputs: int, num_inputs: int) -> bool:
        """Whether the first half of a layer's outputs is the second half of the original's (scale and shift)."""
        return False

    def kind(self, part: str, module_name: str) -> str | None:
        """What a layer is: attention, mlp, projection or block (the rest of the blocks); None outside the blocks.

        Layers that share an original layer are of one kind. Errors: as `place`.
        """
        return self._kind(part, self._found(part, module_name)[1][0])

    @staticmethod
    def spelled_out(part: str, module_name: str) -> str:
        """A layer's name with `text_model.`, which transformers 5 dropped and every file still carries."""
        # T5 (encoder.block) never had it
        without = part != "unet" and module_name.startswith("encoder.layers.")
        return "text_model." + module_name if without else module_name

    def _kind(self, part: str, split_name: str) -> str | None:
        kinds = self.kinds.get(part, {})
        return next((kind for kind, pattern in kinds.items() if re.search(pattern, "." + split_name)), None)

    def _flat(self, part: str, name: str) -> str:
        return self.prefixes[part] + name.replace(".", "_")

    def _dotted(self, part: str, flat: str) -> str | None:
        """The module name that a file's name without its prefix stands for; None if unknown."""
        return self.tables[part].dotted(flat)

    def _found(self, part: str, module_name: str) -> tuple[Original, tuple[str, ...]]:
        self._check(part)
        found = self._look_up(part, self.spelled_out(part, module_name))
        if found is None:
            raise ValueError(f'"{module_name}" is no known layer of the {part} of {self.title}')
        return found

    def _look_up(self, part: str, name: str) -> tuple[Original, tuple[str, ...]] | None:
        """The original layer that a module is or is a slice of, and all that it is split into."""
        table = self.tables[part]
        original = table.original(name) or Original(name)
        split = table.split(original.name)
        return None if split is None else (original, split)

    def _check(self, part: str) -> None:
        if part not in self.prefixes:
            raise ValueError(f'unknown part "{part}" of {self.title}; choices: {", ".join(self.prefixes)}')
