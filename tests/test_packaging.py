"""``python -m build`` in a clone: an sdist with what the registry's archive has, a wheel of the library."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from wanexperts.comfy_server import ROOT
from wanexperts.wan import __version__

from .archive import archived, tracked

WRITTEN = re.compile(r"PKG-INFO|setup\.cfg|wanexperts\.egg-info/.+")
"""What setuptools adds to an sdist."""


def built(hook: str, source: Path, to: Path) -> Path:
    """What a hook of the build backend, which PyTorch brings, makes of ``source``; nothing is fetched."""
    to.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, to], cwd=source, check=True, capture_output=True)
    (made,) = to.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """An sdist of all tracked files, unpacked."""
    wanted, base = archived(), tmp_path_factory.mktemp("sdist")
    for name in tracked():
        (base / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, base / "clone" / name)
    with tarfile.open(built("build_sdist", base / "clone", base / "made")) as packed:
        packed.extractall(base, filter="data")
    return wanted, base / f"wanexperts-{__version__}"


def test_an_sdist_holds_what_the_archive_holds(sdist):
    wanted, folder = sdist
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in names if not WRITTEN.fullmatch(name)} == wanted


def test_a_wheel_of_it_is_the_library_alone(sdist, tmp_path):
    wanted, folder = sdist
    with zipfile.ZipFile(built("build_wheel", folder, tmp_path / "made")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (told,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        needs = re.findall(r"^Requires-Dist: (.+)$", wheel.read(told).decode(), re.MULTILINE)
    assert names == {name for name in wanted if name.startswith("wan/")}
    # The machine's own PyTorch is used, never another one.
    assert needs
    assert not [need for need in needs if need.startswith("torch")]
