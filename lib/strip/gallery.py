"""The HTML page of a strip: cells loaded when they come into view, full size behind a link, no script."""

from __future__ import annotations

import html
from collections.abc import Mapping
from urllib.parse import quote

from .cells import Cell
from .page import Sheet

_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0; height: 100vh; display: flex; flex-direction: column; font: 15px/1.4 system-ui, sans-serif;
  color: #1F2933; background: #fff }
header { padding: 20px 24px 8px } h1 { font-size: 22px; margin: 0 } p { margin: 4px 0; color: #6B7885 }
.scroll { flex: 1; min-height: 240px; overflow: auto } table { border-spacing: 8px 4px; margin: 0 16px 16px }
th { text-align: left; font-weight: 600; white-space: nowrap; position: sticky; top: 0; z-index: 1; background: #fff }
td { vertical-align: top; padding: 0 } td.label { padding-top: 10px; color: #6B7885 } td.label b { color: #1F2933 }
td.label div { position: sticky; left: 24px; width: max-content; max-width: 90vw }
img { display: block; background: #F1F4F6; image-rendering: auto } a:hover img { outline: 3px solid #2563EB }
td.empty { background: #F1F4F6; color: #B45309; padding: 8px; font-size: 13px }
.figures { font-size: 13px; color: #6B7885; list-style: none; margin: 0; padding: 0 } .warns { color: #B45309 }
.warns::before { content: "\\25B2\\00A0" }
"""


def gallery(
    sheet: Sheet, cells: Mapping[tuple[int, int], Cell], cell_size: tuple[int, int], refresh_seconds: int = 0
) -> str:
    """The page, as text. Cells are links to their files beside the page; a strip without files shows labels alone.

    With `refresh_seconds` a browser loads the page again after so many seconds.
    """
    width, height = cell_size
    shown = min(256, max(width, 192))
    size = f'width="{shown}" height="{max(1, round(shown * height / width))}"'
    head = "".join(f"<th>{_text(label)}</th>" for label in sheet.columns)
    body = []
    for row, label in enumerate(sheet.rows):
        prompt, _, rest = label.partition("\n")
        text = f"<div><b>{_text(prompt)}</b> {_text(rest)}</div>"
        body.append(f'<tr><td class="label" colspan="{len(sheet.columns)}">{text}</td></tr>')
        body.append("<tr>" + "".join(_cell(cells.get((c, row)), size) for c in range(len(sheet.columns))) + "</tr>")
    figures = "".join(
        '<td><ul class="figures">'
        + "".join(f"<li{' class=warns' if f.warns else ''}>{_text(f.text)}</li>" for f in lines)
        + "</ul></td>"
        for lines in sheet.figures
    )
    legend = "".join(f"<p>{_text(line)}</p>" for line in sheet.legend)
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">\n' if refresh_seconds else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
{refresh}<title>{_text(sheet.title or "Strip")}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_text(sheet.title)}</h1><p>{_text(sheet.note)}</p>{legend}</header>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>{"".join(body)}<tr>{figures}</tr></tbody>
</table></div>
</body>
</html>
"""


def _cell(cell: Cell | None, size: str) -> str:
    if cell is None or not cell.file:
        return f'<td class="empty">{_text(cell.error if cell else "")}</td>'
    file = _text(quote(cell.file))
    return f'<td><a href="{file}"><img loading="lazy" {size} alt="" src="{file}"></a></td>'


def _text(value: str) -> str:
    """Any text as harmless HTML: escaped, without control characters."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in value.replace("\n", " "))
    return html.escape(text, quote=True)
