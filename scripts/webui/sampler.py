"""Previews by the host's own txt2img, on the model as it is trained, that leave nothing behind.

No picture is saved into the user's outputs, the last prompt is not overwritten, conditions come from the network as
it is and never from the cache, the checkpoint stays the one that is trained whatever is chosen meanwhile, networks
that a prompt asks for are taken out of the weights again, and what the page shows of the job is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from PIL import Image

from ...lib.host import SampleRequest
from . import builtin_lora
from .loaded import Loaded
from .patched import patched

# of shared.state, which a generation changes
_OF_THE_JOB = (
    "job",
    "job_no",
    "job_count",
    "job_timestamp",
    "sampling_step",
    "sampling_steps",
    "current_image_sampling_step",
    "processing_has_refined_job_count",
    "textinfo",
)


class WebuiSampler:
    """`sampler(request)` is a picture, or None where it was interrupted, skipped, or failed for a reason of the host's.

    `txt2img`: further fields of the host's txt2img, such as sampler_name and scheduler. Errors: `ValueError` for a
    field that is not there.
    """

    def __init__(
        self, loaded: Loaded, txt2img: dict[str, Any], on_problem: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self._loaded, self._fields, self._on_problem = loaded, txt2img, on_problem
        self.is_running = False
        if txt2img:
            check_fields(txt2img)

    def __call__(self, request: SampleRequest) -> Image.Image | None:
        from modules import devices, processing, shared

        with self._undisturbed():
            p = self._processing(request)
            try:
                images = processing.process_images(p).images
            except (OSError, devices.NansException) as error:
                # a file that the host looks for or a picture of NaN must not end a run of hours
                self._on_problem(f'the picture of "{request.prompt[:60]}" failed: {error}')
                return None
            finally:
                p.close()
            state = shared.state
            cut = state.interrupted or state.skipped or state.stopping_generation
            return None if cut or not images else images[0].convert("RGB")

    def _processing(self, request: SampleRequest) -> Any:
        from modules import processing, sd_samplers

        model = self._loaded.model

        class Preview(processing.StableDiffusionProcessingTxt2Img):
            def setup_conds(self) -> None:
                # here the networks of the prompt are known, and nothing has been computed with them
                builtin_lora.merge_wanted(model)
                super().setup_conds()

        fields = {"sampler_name": sd_samplers.samplers[0].name, "restore_faces": False, "tiling": False, **self._fields}
        return Preview(
            **fields,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            steps=request.steps,
            cfg_scale=request.guidance,
            seed=request.seed,
            width=request.width,
            height=request.height,
            do_not_save_samples=True,
            do_not_save_grid=True,
            do_not_reload_embeddings=True,
        )

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        from modules import devices, processing, sd_models, sd_unet, shared

        model, state = self._loaded.model, shared.state

        def held(*args: Any, info: Any = None, **kwargs: Any) -> Any:
            if info is not None and info.filename != model.sd_checkpoint_info.filename:
                raise ValueError(f"a preview cannot change the checkpoint to {info.title} while one is trained")
            return model

        fresh: dict[str, Any] = {name: [None, None] for name in ("cached_c", "cached_uc")}
        fresh_hires: dict[str, Any] = {name: [None, None] for name in ("cached_hr_c", "cached_hr_uc")}
        job = {name: getattr(state, name) for name in _OF_THE_JOB}
        alphas_cumprod, random = getattr(model, "alphas_cumprod", None), devices.nv_rng
        self.is_running = True
        try:
            with ExitStack() as stack:
                stack.enter_context(builtin_lora.cleared_after(model))
                stack.enter_context(patched(processing.StableDiffusionProcessing, **fresh))
                stack.enter_context(patched(processing.StableDiffusionProcessingTxt2Img, **fresh_hires))
                stack.enter_context(patched(sd_models, reload_model_weights=held))
                stack.enter_context(patched(sd_unet, apply_unet=lambda option=None: None))
                stack.enter_context(patched(shared.cmd_opts, no_prompt_history=True))
                yield
        finally:
            self.is_running = False
            for name, value in job.items():
                setattr(state, name, value)
            # it would be decoded again and again for the page while training goes on
            state.current_latent = None
            devices.nv_rng = random
            if alphas_cumprod is not None:
                model.alphas_cumprod = alphas_cumprod


def check_fields(fields: dict[str, Any]) -> None:
    """Whether each of `fields` can be given for previews. Errors: `ValueError` naming the one that cannot."""
    import dataclasses

    from modules import processing

    ours = {"prompt", "negative_prompt", "steps", "cfg_scale", "seed", "width", "height"}
    known = {f.name for f in dataclasses.fields(processing.StableDiffusionProcessingTxt2Img) if f.init} - ours
    swaps = {"refiner_checkpoint", "hr_checkpoint_name", "override_settings"}
    for name in fields:
        if name not in known or name in swaps:
            raise ValueError(
                f'previews have no field "{name}"; those of txt2img can be given, but for what changes the checkpoint '
                "and what preview.* sets"
            )
