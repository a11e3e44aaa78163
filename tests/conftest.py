"""Registers the repository as the package ``wanexperts`` so that relative imports work anywhere."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parents[1]


def _register() -> None:
    if "wanexperts" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "wanexperts", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanexperts"] = module
    spec.loader.exec_module(module)


_register()


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what tests measured and, by name, what was skipped and why."""
    reports = [r for rs in terminalreporter.stats.values() for r in rs if hasattr(r, "when")]
    measured: dict[str, float] = {}
    for report in reports:
        for name, value in report.user_properties if report.when == "call" else ():
            measured[name] = max(value, measured.get(name, value))
    if measured:
        terminalreporter.section("measured (largest over all cases)")
        for name, value in measured.items():
            terminalreporter.write_line(f"{name}: {value:.3g}")
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("skipped")
        for report in skipped:
            terminalreporter.write_line(f"{report.nodeid}: {report.longrepr[2]}")
