"""Write down what a ComfyUI says of our nodes: ``schema.json`` and the English words.

    .venv/bin/python tests/nodes/freeze.py

Both are compared with every ComfyUI found by the tests; look at the difference before you commit it:
ids, names, order and defaults are the public API, and Chinese words follow by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from faces import ours, public, texts  # noqa: E402

from comfy_server import Host  # noqa: E402
from demo import find_checkouts  # noqa: E402

SCHEMA = HERE / "schema.json"
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def main() -> None:
    """Ask the best ComfyUI found."""
    with Host(next(iter(find_checkouts()))) as host:
        loras = host.base / "models" / "loras"
        loras.mkdir(parents=True)
        (loras / "any.safetensors").touch()  # choices that hold files are not frozen
        found = ours(host.get("/object_info"))
    _write(SCHEMA, {name: public(info) for name, info in found.items()}, indent=1)
    _write(ENGLISH, {name: texts(info) for name, info in found.items()}, indent=2)


def _write(path: Path, content: dict[str, Any], indent: int) -> None:
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
