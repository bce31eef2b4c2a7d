"""ComfyUI's nodes, in the order of the menu. There are none yet: this version has the core and the command line."""

NODES: tuple[type, ...] = ()
