"""The only modules that touch ComfyUI internals."""
