"""The line of text below a node while it works and after it."""

from __future__ import annotations

import re
from typing import Any

_MARKS = re.compile(r"[&<>*_`\[\]#~\\|]|^[ ]*[-+=]|^[ ]*\d+(?=[.)])", re.MULTILINE)


def markup(text: str) -> str:
    """Plain text so that every page shows it as it is: some take it for HTML, and newer ones for Markdown.

    Names and captions hold anything. Both read character references; two blanks keep the end of a line in Markdown.
    """
    return _MARKS.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), text).replace("\n", "  \n")


def send(server: Any, text: str, node_id: str) -> None:
    """Show `text` below a node."""
    server.send_progress_text(markup(text), node_id)
