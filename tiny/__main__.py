"""``python -m tiny COMMAND``: train, judge, evaluate (from the repository root)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

COMMANDS = {
    "all": "retrain the whole family from nothing",
    "judge": "score one mp4 against its prompt",
    "evaluate": "generate and score unseen prompts with the experts right, swapped and alone",
    "text": "train only the tokenizer and the text encoder",
    "vae": "train only the VAE",
    "experts": "encode the corpus, or train one expert on it",
    "export": "write the trained parts to tiny/weights",
}
MODULES = {"all": "train_all", "text": "train_text", "vae": "train_vae", "experts": "train_experts"}


def main() -> int:
    """Register the repository as the package ``wanexperts`` and hand over to the command."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        lines = (f"  {name:10} {text}" for name, text in COMMANDS.items())
        print("usage: python -m tiny COMMAND [options]", *lines, sep="\n")
        return 2
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "wanexperts", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["wanexperts"] = package
    spec.loader.exec_module(package)
    command = sys.argv.pop(1)
    sys.argv[0] = f"python -m tiny {command}"
    module = importlib.import_module(f"wanexperts.tiny.{MODULES.get(command, command)}")
    return int(module.main() or 0)


if __name__ == "__main__":
    sys.exit(main())
