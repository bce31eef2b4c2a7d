"""ComfyUI's entry; harmless when imported elsewhere."""
