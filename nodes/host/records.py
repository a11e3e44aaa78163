"""Files whose runs are compared: found by name in ComfyUI's own folders, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...wan.files import shown
from ...wan.manifest import Manifest, read_manifest


def find_saved(name: str) -> Path:
    """Path of a file in the output folder, else in the input folder, by its name there.

    Raises:
        ValueError: no name, one that leaves the folder, or no such file.
    """
    if not name.strip():
        raise ValueError(
            "no file is named; write one of the output folder, such as video/wan_00001_.mp4"
        )
    for root in (folder_paths.get_output_directory(), folder_paths.get_input_directory()):
        path = os.path.abspath(os.path.join(root, name.strip()))
        if not Path(path).is_relative_to(os.path.abspath(root)):
            raise ValueError(
                f"{shown(name)} leaves the output folder; write a name below it, such as "
                "video/wan_00001_.mp4"
            )
        if os.path.isfile(path):
            return Path(path)
    raise ValueError(f"{shown(name)} is in neither the output nor the input folder; check the name")


def saved_run(name: str) -> Manifest:
    """What a file of those folders says of its run; raises ValueError or OSError if it does not."""
    return read_manifest(find_saved(name))
