"""ComfyUI's entry. Importing it does nothing, so it is harmless elsewhere; ComfyUI calls `comfy_entrypoint`."""


async def comfy_entrypoint():
    """The extension with the nodes of `nodes/`. Only ComfyUI calls this."""
    from comfy_api.latest import ComfyExtension

    from .nodes import NODES

    class AtelierExtension(ComfyExtension):
        async def get_node_list(self):
            return list(NODES)

    return AtelierExtension()
