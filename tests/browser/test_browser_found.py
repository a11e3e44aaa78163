"""Says in one line when the browser tests cannot run."""

from __future__ import annotations

import pytest

from .at_hand import missing


@pytest.mark.comfy
def test_a_browser_is_at_hand():
    if told := missing():
        pytest.skip(told)
