"""A custom node file of the tests: every MODEL of this server is loaded as ``--novram`` would on a GPU.

ComfyUI ignores that option where the device is the CPU. Copied alone into ``custom_nodes``.
"""

from __future__ import annotations

import comfy.model_management

AS_NOVRAM = 0.1
"""Bytes that ComfyUI leaves for weights then."""

_load = comfy.model_management.LoadedModel.model_load


def _load_nothing(self, lowvram_model_memory=0, *more, **named):
    return _load(self, AS_NOVRAM, *more, **named)


comfy.model_management.LoadedModel.model_load = _load_nothing
NODE_CLASS_MAPPINGS = {}
