"""Retrain the whole family from nothing: text, VAE, corpus, both experts side by side, export."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from . import evaluate, export
from .train_experts import ROLES, WORK

VAE_MINUTES, EXPERT_MINUTES = 25, 45
GATE = 0.98
"""Share of reconstructions whose shape must be right before the experts are trained."""


def main() -> int:
    """Run every stage; each one resumes from what tiny/work holds. Takes about 80 minutes of 2 cores."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--vae-minutes", type=float, default=VAE_MINUTES)
    parser.add_argument("--expert-minutes", type=float, default=EXPERT_MINUTES)
    arguments = parser.parse_args()
    if not (WORK / "text.pt").exists():
        _run("text")
    _run("vae", "--minutes", str(arguments.vae_minutes), "--require-shape", str(GATE))
    if not (WORK / "corpus.pt").exists():
        _run("experts", "corpus")
    minutes = str(arguments.expert_minutes)
    experts = [_start("experts", role, "--minutes", minutes) for role in ROLES]
    statuses = [process.wait() for process in experts]
    if any(statuses):
        return 1
    export.export(WORK, export.WEIGHTS)
    sys.argv = sys.argv[:1]
    return evaluate.main()


def _start(*command: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen([sys.executable, "-m", "tiny", *command], cwd=root)


def _run(*command: str) -> None:
    if status := _start(*command).wait():
        raise SystemExit(status)
