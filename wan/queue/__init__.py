"""Prompts for ComfyUI servers from outside: queued, followed, fetched, and lost by no restart.

One prompt has one owner (``pool``), one id that follows from its graph (``jobs``), and one line in the
folder of results (``ledger``). The websocket only says when to look: what a prompt became is read from
the server's history.
"""

from .address import Address, parse_address
from .batch import Batch, first_catalog, read_batch, run_batch
from .canvas import changed_canvas
from .catalog import Catalog
from .jobs import (
    Job,
    Wishes,
    changed,
    make_jobs,
    parse_seeds,
    parse_settings,
    read_changes,
    read_table,
)
from .ledger import MANIFEST, Ledger
from .pool import Pool
from .server import Refused, Server, Unavailable
from .worker import Pace, Watcher, Worker

__all__ = [
    "MANIFEST",
    "Address",
    "Batch",
    "Catalog",
    "Job",
    "Ledger",
    "Pace",
    "Pool",
    "Refused",
    "Server",
    "Unavailable",
    "Watcher",
    "Wishes",
    "Worker",
    "changed",
    "changed_canvas",
    "first_catalog",
    "make_jobs",
    "parse_address",
    "parse_seeds",
    "parse_settings",
    "read_batch",
    "read_changes",
    "read_table",
    "run_batch",
]
