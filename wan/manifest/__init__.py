"""Runs that can be made again: what made some latents, written down, compared and found in files."""

from .compare import differences, verdict
from .marks import file_mark, files_mark, tensors_digest, text_digest
from .read import KEY, TAG, find_manifest, read_manifest
from .record import LoraMark, Manifest, Mark, StageRecord, canonical, from_json, to_json

__all__ = [
    "KEY",
    "TAG",
    "LoraMark",
    "Manifest",
    "Mark",
    "StageRecord",
    "canonical",
    "differences",
    "file_mark",
    "files_mark",
    "find_manifest",
    "from_json",
    "read_manifest",
    "tensors_digest",
    "text_digest",
    "to_json",
    "verdict",
]
