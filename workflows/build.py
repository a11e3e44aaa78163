"""Writes the templates: ``python -m workflows.build`` after a change of one, or of the nodes' schema.

Each template is described once, in ``templates.py``; from that come the file that the template browser
opens (UI format 0.4), the same graph for ``/prompt`` (``api/``), and a subgraph blueprint. A widget that
keeps its default at the end of a node is left out, so that widgets appended to nodes later change
nothing here. Needs nothing but Python; tests compare the committed files with what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .sheet import ROOT
from .templates import SHEETS, wan_text_to_video


def text(graph: Any) -> str:
    """JSON of ASCII alone: some hosts open these files in another encoding."""
    return json.dumps(graph, indent=2) + "\n"


def files() -> dict[Path, str]:
    """Every file and what it holds."""
    written = {ROOT / "subgraphs" / "Wan text to video.json": text(wan_text_to_video())}
    for make in SHEETS:
        sheet = make()
        written[ROOT / "workflows" / f"{sheet.name}.json"] = text(sheet.ui())
        written[ROOT / "workflows" / "api" / f"{sheet.name}.json"] = text(sheet.api())
    return written


def main() -> None:
    """Write all."""
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
