"""Where the pages, routes and hooks are put into the host; called at each start and at each *Reload UI*."""

from __future__ import annotations

from typing import Any

from . import api, grid, page, stock
from .settings import add_settings

TITLE = "Atelier"


def register() -> None:
    """Register everything with the host's callbacks. What a host does not have is left out, and the rest works."""
    from modules import script_callbacks

    built = {"in_train_tab": False}

    def train_tab(params: Any) -> None:
        import gradio as gr

        with gr.Tab(label=TITLE, id="atelier", elem_id="atelier_tab"):
            page.build(api.key())
        built["in_train_tab"] = True

    def own_tab() -> list[tuple[Any, str, str]]:
        # Forge knows the callback of the Train tab and never calls it; SD.Next has none
        if built["in_train_tab"]:
            return []
        import gradio as gr

        with gr.Blocks(analytics_enabled=False) as blocks:
            page.build(api.key())
        return [(blocks, TITLE, "atelier")]

    def before_ui() -> None:
        built["in_train_tab"] = False
        page.before_ui()
        grid.add_axis()

    script_callbacks.on_before_ui(before_ui)
    script_callbacks.on_after_component(page.after_component)
    script_callbacks.on_ui_settings(add_settings)
    train_tabs = getattr(script_callbacks, "on_ui_train_tabs", None)
    if train_tabs is not None:
        train_tabs(train_tab)
    script_callbacks.on_ui_tabs(own_tab)
    script_callbacks.on_app_started(lambda demo, app: api.add_routes(app))
    stock.install()
    script_callbacks.on_script_unloaded(stock.uninstall)
