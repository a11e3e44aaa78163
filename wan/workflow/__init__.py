"""Workflows of ComfyUI, read without ComfyUI: UI files (format 0.4 and 1) and API files alike."""

from .graph import PRIMITIVES, Link, Node, Workflow
from .read import parse_workflow, read_canvas, read_workflow
from .runs import AUTO_LORA, FoundRun, GridUse, StageUse, find_runs
from .widgets import NOT_NAMED, WIDGETS

__all__ = [
    "AUTO_LORA",
    "NOT_NAMED",
    "PRIMITIVES",
    "WIDGETS",
    "FoundRun",
    "GridUse",
    "Link",
    "Node",
    "StageUse",
    "Workflow",
    "find_runs",
    "parse_workflow",
    "read_canvas",
    "read_workflow",
]
