"""Checkpoint strips: the same prompts and seeds for each checkpoint, side by side, in the order of their steps.

names.py      which checkpoints, and their order
cells.py      finished cells on the disk, known by everything that they depend on
render.py     making the cells that are missing
metrics.py    what pixels say: differences, noise, background, colour
lettering.py  fonts, and text that fits
png.py        PNG files written band by band
page.py       composing pages of any size in the memory of one row
gallery.py    the HTML page
publish.py    a strip's files, from its cells
growing.py    the previews of a run as a strip that grows while it trains
"""
