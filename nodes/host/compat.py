"""Differences between the supported ComfyUI versions (0.3.64 to newest), one function each."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
from comfy_api.internal import _ComfyNodeInternal, first_real_override
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from comfy_execution.validation import validate_node_input


def schema(**fields: Any) -> io.Schema:
    """``io.Schema`` of the fields this version knows; an unknown one would drop the whole pack."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def patcher_class() -> type[comfy.model_patcher.ModelPatcher]:
    """The patcher of diffusion models and text encoders, looked up late: main.py may rebind it."""
    return getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def is_dynamic(patcher: Any) -> bool:
    """Whether weights are paged in on demand (0.12 and later)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def keep_stored_dtypes(network: Any) -> None:
    """Let weights that are paged in on demand keep the dtype they were loaded in (0.12 and later)."""
    getattr(comfy.model_management, "archive_model_dtypes", lambda _: None)(network)


def accepted(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``options`` that ``function`` takes in this version."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def show_text(text: str) -> None:
    """Text on the node under way, where the frontend shows such; nothing without a server."""
    # Looked up, not imported: outside a server its import would need all that a server needs.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    send, context = getattr(server, "send_progress_text", None), get_executing_context()
    if send is not None and context is not None:
        send(text, context.node_id, server.client_id)


def fits(given: Any, wanted: str) -> bool:
    """Whether an output of type ``given`` may be linked to an input of type ``wanted``."""
    return bool(validate_node_input(given, wanted))


def node_class(kind: str) -> Any:
    """The class behind a node's type; None where there is none, or no server."""
    mappings = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    return mappings.get(kind)


def tells_changes(node: Any) -> bool:
    """Whether ComfyUI asks a node class, before a run, if something changed beyond its inputs."""
    if issubclass(node, _ComfyNodeInternal):
        return first_real_override(node, "fingerprint_inputs") is not None
    return hasattr(node, "IS_CHANGED")
