"""The page's own elements in the host's interface: one place that our scripts fill, and a way to read txt2img.

The form is built in the browser from the settings' own declarations (`page_values.groups`), which every host's page
has in common. So little of gradio is needed that the page is the same under gradio 3 and 4.
"""

from __future__ import annotations

import html
import json
import time
from typing import Any

from .page_values import FURTHER

# fields of txt2img -> their elements in the host's page, apart from those that the Train tab is given
_ELEMENTS = {
    "txt2img_scheduler": "scheduler",
    "txt2img_styles": "styles",
    "txt2img_hr-checkbox": "enable_hr",
    "txt2img_hr_scale": "hr_scale",
    "txt2img_hr_upscaler": "hr_upscaler",
    "txt2img_hires_steps": "hr_second_pass_steps",
    "txt2img_hr_resize_x": "hr_resize_x",
    "txt2img_hr_resize_y": "hr_resize_y",
    "txt2img_denoising_strength": "denoising_strength",
    # for hosts that do not give them to the Train tab
    "txt2img_prompt": "prompt",
    "txt2img_neg_prompt": "negative_prompt",
    "txt2img_steps": "steps",
    "txt2img_sampling": "sampler_name",
    "txt2img_cfg_scale": "cfg_scale",
    "txt2img_seed": "seed",
    "txt2img_width": "width",
    "txt2img_height": "height",
}
_FOUND: dict[str, Any] = {}

assert set(FURTHER) <= set(_ELEMENTS.values())


def after_component(component: Any, **about: Any) -> None:
    """Remember the fields of txt2img as the host makes them."""
    name = _ELEMENTS.get(about.get("elem_id") or "")
    if name is not None:
        _FOUND[name] = component


def before_ui() -> None:
    """Forget the fields of the interface before a reload."""
    _FOUND.clear()


def build(key: str) -> None:
    """Our elements, inside the host's tab that is being made."""
    import gradio as gr

    fields = dict(_FOUND)
    with gr.Column(elem_id="atelier_page", elem_classes=["atelier"]):
        _quiet(gr.HTML(f'<div id="atelier_root" data-key="{html.escape(key)}"></div>', elem_id="atelier_html"))
        with gr.Column(elem_classes=["atelier-hidden"]):
            read = _quiet(gr.Button("Read txt2img", elem_id="atelier_read_txt2img"))
            answer = _quiet(gr.Textbox("", label="txt2img", elem_id="atelier_txt2img", interactive=True))

    def as_json(*values: Any) -> str:
        # the time makes it another text each time, by which the page knows that it was read
        return json.dumps({"read": time.time(), "fields": dict(zip(fields, values, strict=True))})

    read.click(fn=as_json, inputs=list(fields.values()), outputs=[answer])


def _quiet(component: Any) -> Any:
    """The host would keep its value as a default for ever."""
    component.do_not_save_to_config = True
    return component
