"""What ComfyUI calls first says what is wrong when the pack cannot start. Needs no ComfyUI."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest
import wanexperts


def test_a_missing_module_is_told_with_its_traceback(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "comfy_api", None)
    monkeypatch.setitem(sys.modules, "comfy_api.latest", None)
    for name in [name for name in sys.modules if name.startswith("wanexperts.nodes")]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.ERROR), pytest.raises(ImportError):
        asyncio.run(wanexperts.comfy_entrypoint())
    (record,) = caplog.records
    assert "pip install -r requirements.txt" in record.getMessage()
    assert record.exc_info is not None
    assert "comfy_api" in str(record.exc_info[1])
