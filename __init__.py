"""ComfyUI's entry. Importing it does nothing, so it is harmless elsewhere; ComfyUI calls `comfy_entrypoint`."""

WEB_DIRECTORY = "./javascript/comfyui"


async def comfy_entrypoint():
    """The extension with the nodes of `nodes/`. Only ComfyUI calls this."""
    from .nodes.extension import AtelierExtension

    return AtelierExtension()
