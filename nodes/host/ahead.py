"""The file of the expert that comes next, asked for while the last step before it runs.

Weights are mapped; those that the system has not read yet would be waited for, page by page, at the
switch. The system reads what it is advised to with the least priority and lets it go first.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch

from ...wan.files import TensorInfo

log = logging.getLogger(__name__)

PIECE = 1 << 26
"""Bytes of one advice, after which a run that ended is noticed."""
SPANS = "wan_spans"
"""Attribute of a model: where its weights lie."""


class Span(NamedTuple):
    """Bytes of a file that hold weights."""

    file: Path
    begin: int
    nbytes: int


def spans_of(tensors: Mapping[str, TensorInfo]) -> tuple[Span, ...]:
    """From the first to the last weight of each file; nothing of files that only torch can read."""
    found: dict[Path, tuple[int, int]] = {}
    for info in tensors.values():
        if info.begin is not None and info.nbytes:
            first, last = found.get(info.file, (info.begin, 0))
            found[info.file] = min(first, info.begin), max(last, info.begin + info.nbytes)
    return tuple(Span(file, first, last - first) for file, (first, last) in found.items())


class Ahead:
    """A thread at most that advises the system, about one model at a time."""

    def __init__(self) -> None:
        """Nothing is advised yet."""
        self._told: object = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, model: Any) -> None:
        """``model`` (a ComfyUI model) comes next; once is enough, more often does nothing."""
        spans: Sequence[Span] = getattr(model, SPANS, ())
        if model is self._told or not hasattr(os, "posix_fadvise"):
            return
        self.close()
        self._told, self._ended = model, threading.Event()
        room = mm.get_free_memory(torch.device("cpu"))
        if sum(span.nbytes for span in spans) <= room:  # else it would only push out what is in use
            given = spans, self._ended
            self._thread = threading.Thread(target=_advise, args=given, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """The model is there, or does not come."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._told = None


def _advise(spans: Sequence[Span], ended: threading.Event) -> None:
    try:
        for span in spans:
            with span.file.open("rb", buffering=0) as file:
                for done in range(0, span.nbytes, PIECE):
                    if ended.is_set():
                        return
                    begin, nbytes = span.begin + done, min(PIECE, span.nbytes - done)
                    os.posix_fadvise(file.fileno(), begin, nbytes, os.POSIX_FADV_WILLNEED)
    except OSError as error:  # whoever loads the model will say so
        log.debug("nothing read ahead: %s", error)
