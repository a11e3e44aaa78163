"""Real ComfyUI servers over HTTP and websocket."""
