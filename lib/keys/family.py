"""What the names of every model family have in common: three spellings of a layer, and what a layer is.

Modules are spelled as diffusers and transformers spell them. The original spelling is that of the model's first code,
which checkpoints in one file, ComfyUI and the WebUI keep. Files have kohya's names or those of diffusers.
"""

from __future__ import annotations

import re
from typing import ClassVar

from .table import Original, Table


class Family:
    """Names of one family. A part is "unet" (the denoiser, also where it is a transformer) or a text encoder."""

    title: ClassVar[str]
    prefixes: ClassVar[dict[str, str]]  # part -> what kohya's names begin with
    tables: ClassVar[dict[str, Table]]  # parts whose original spelling is another one
    kinds: ClassVar[dict[str, dict[str, str]]]  # part -> kind -> pattern; the first that is found counts
    kohya_is_original: ClassVar[bool] = True  # kohya names the denoiser's layers as the original does

    def file_name(self, part: str, module_name: str) -> str:
        """The name of a layer in files; the same for all layers that share one adapter.

        Errors: `ValueError` for a part or a layer that this family does not have.
        """
        return self.kohya_name(part, module_name)

    def kohya_name(self, part: str, module_name: str) -> str:
        """Kohya's name of a layer, or of the original layer that it is a slice of. Errors: as `file_name`."""
        self._check(part)
        name = self.spelled_out(part, module_name)
        if part == "unet" and self.kohya_is_original:
            name = self.original_name(part, module_name).name
        return self.prefixes[part] + name.replace(".", "_")

    def original_name(self, part: str, module_name: str) -> Original:
        """The original layer that a layer is, or is a slice of (`table.output_slices`). Errors: as `file_name`."""
        self._check(part)
        name = self.spelled_out(part, module_name)
        original = self.tables[part].original(name) if part in self.tables else Original(name)
        if original is None:
            raise ValueError(f'"{module_name}" is no known layer of the {part} of {self.title}')
        return original

    def split_names(self, part: str, original_name: str) -> tuple[str, ...]:
        """The layers that an original layer concatenates along its outputs, in order; mostly a single one.

        Text encoders are spelled with `text_model.`, as in files. Errors: as `file_name`.
        """
        self._check(part)
        names = self.tables[part].split(original_name) if part in self.tables else (original_name,)
        if names is None:
            raise ValueError(f'"{original_name}" is no known original layer of the {part} of {self.title}')
        return names

    def halves_swapped(self, part: str, module_name: str, num_outputs: int, num_inputs: int) -> bool:
        """Whether the first half of a layer's outputs is the second half of the original's (scale and shift)."""
        return False

    def kind(self, part: str, module_name: str) -> str | None:
        """What a layer is: attention, mlp, projection or block (the rest of the blocks); None outside the blocks.

        Layers that share an original layer are of one kind.
        """
        kinds = self.kinds.get(part, {})
        return next((kind for kind, pattern in kinds.items() if re.search(pattern, "." + module_name)), None)

    @staticmethod
    def spelled_out(part: str, module_name: str) -> str:
        """A layer's name with `text_model.`, which transformers 5 dropped and every file still carries."""
        # T5 (encoder.block) never had it
        without = part != "unet" and module_name.startswith("encoder.layers.")
        return "text_model." + module_name if without else module_name

    def _check(self, part: str) -> None:
        if part not in self.prefixes:
            raise ValueError(f'unknown part "{part}" of {self.title}; choices: {", ".join(self.prefixes)}')
