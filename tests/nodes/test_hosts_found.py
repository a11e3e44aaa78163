"""Says in one line when the host suite cannot run."""

from __future__ import annotations

import pytest


@pytest.mark.comfy
def test_a_comfyui_is_at_hand(checkouts):
    if not checkouts:
        pytest.skip(
            "NO COMFYUI FOUND, the whole host suite was left out; "
            "set COMFYUI_PATH to a checkout to run it"
        )
