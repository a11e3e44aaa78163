"""The archive of the registry: what it leaves out, and that it runs under any folder name."""

from __future__ import annotations

import subprocess
import zipfile

import pytest
from wanexperts.comfy_server import ROOT, Host

from .checkouts import CHECKOUTS

pytestmark = pytest.mark.comfy
FOLDER = "Wan Experts v0.1"
"""ComfyUI serves no scripts, help pages and thumbnails of a folder with spaces; all else works."""
LEFT_OUT = ("tests/", "benchmarks/", ".ci/", ".github/")
MEGABYTES = 15


def tracked(*options):
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", *options], cwd=ROOT, capture_output=True, check=True
    )
    return set(filter(None, told.stdout.decode().split("\0")))


@pytest.fixture(scope="module")
def names():
    """What the registry packs: tracked files, less those of ``.comfyignore``."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is not known; run it in a clone")
    return tracked() - tracked("--ignored", "--exclude-from=.comfyignore")


@pytest.fixture(scope="module")
def unpacked(names, tmp_path_factory):
    """The archive, written and unpacked."""
    base = tmp_path_factory.mktemp("archive")
    archive = base / "node.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(names):
            packed.write(ROOT / name, name)
    assert archive.stat().st_size < MEGABYTES * 1e6
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(base / "unpacked")
    return base / "unpacked"


def test_developers_files_stay_out(names):
    assert not [name for name in names if name.startswith(LEFT_OUT)]
    assert not [
        name for name in names if name.startswith(("tiny/", "workflows/")) and name.endswith(".py")
    ]
    assert {"LICENSE", "NOTICE", "README.md", "README.zh.md", "requirements.txt"} <= names
    assert sum(name.startswith("tiny/weights/") for name in names) == 4


def test_it_loads_under_a_name_with_spaces_and_dots(unpacked):
    with Host(CHECKOUTS[0], pack=unpacked, folder=FOLDER) as host:
        loader = host.get("/object_info/WanExpertsLoader")["WanExpertsLoader"]
        choices = str(loader["input"]["required"]["model_high_noise"])
        assert "wan_tiny_t2v_high_noise.safetensors" in choices
        words = host.get("/i18n")
        assert words["zh"]["nodeDefs"]["WanExpertsSampler"]["display_name"] == "Wan 双专家采样"
        assert "wan_tiny_t2v" in host.get("/workflow_templates")[FOLDER]
