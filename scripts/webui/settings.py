"""Our section in the host's Settings."""

from __future__ import annotations

from .folders import is_local

SECTION = ("atelier", "Atelier")


def add_settings() -> None:
    """Register the settings; called before the host builds its Settings page."""
    import gradio as gr
    from modules import shared

    # who reaches the page from another machine may name no folder of this one
    folders = {"visible": is_local()}
    options = {
        "atelier_runs_folder": shared.OptionInfo("", "Folder for new runs", gr.Textbox, folders).info(
            "empty: atelier/runs beside the WebUI's models; a folder that ComfyUI also uses shows its runs here"
        ),
        "atelier_further_runs_folders": shared.OptionInfo(
            "", "Further folders with runs", gr.Textbox, {**folders, "lines": 2}
        ).info("one a line; their runs are listed too, such as those of ComfyUI"),
        "atelier_stock_training": shared.OptionInfo(
            True, "Built-in training: write every picture's loss and accept Atelier's schedules", gr.Checkbox
        ).info("embeddings and hypernetworks; loss.csv beside the host's own log. Harmless when off"),
        "atelier_sound": shared.OptionInfo(True, "Play the notification sound when a run has ended", gr.Checkbox).info(
            "where the WebUI has a notification.mp3"
        ),
    }
    for name, option in options.items():
        option.section = SECTION
        shared.opts.add_option(name, option)
