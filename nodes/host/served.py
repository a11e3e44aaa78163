"""Scripts, help pages and templates of a folder whose name ComfyUI itself cannot serve.

aiohttp compares the address of a static folder as it is quoted with that of a request as it is read: a name
with a space, or anything else that is quoted, never matches. And the frontend asks for help pages below the
folder's name up to its first dot. A route with a variable part has neither trouble.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

PACK = Path(os.path.abspath(__file__)).parents[2]
"""As it is called in ``custom_nodes``, which may be a link to another place."""
SERVED = {"/extensions": "web", "/workflow_templates": "workflows"}
"""Address -> folder of ours. Templates are asked for below ``/api``, where ComfyUI repeats every route."""


def serve_odd_name() -> None:
    """Serve our files under the name of our folder, if ComfyUI does not."""
    # Looked up, not imported: outside a server its import would need all that a server needs.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None or (quote(PACK.name) == PACK.name and "." not in PACK.name):
        return
    names = "|".join(map(_pattern, (PACK.name, PACK.name.partition(".")[0])))
    for address, folder in SERVED.items():
        # Nobody else's names: a route comes before the frontend's own files.
        path = f"{address}/{{folder:{names}}}/{{name:.+}}"
        server.routes.get(path)(_answers((PACK / folder).resolve()))


def _pattern(name: str) -> str:
    """A name as aiohttp finds it in a request; braces would be its own."""
    escaped = re.escape(name.replace("%", "%25"))
    return escaped.replace(r"\{", r"\x7b").replace(r"\}", r"\x7d")


def _answers(root: Path) -> Any:
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        path = (root / request.match_info["name"]).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)

    return answer
