"""The zoo: every kind of damaged or foreign file that a person may choose, and what must be said of it."""

from __future__ import annotations

from wanexperts.tests.wan import zoo_files, zoo_loras, zoo_models

KINDS = {kind.name: kind for kind in (*zoo_files.KINDS, *zoo_models.KINDS, *zoo_loras.KINDS)}
