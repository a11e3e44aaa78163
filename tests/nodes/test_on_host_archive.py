"""The archive of the registry: what it leaves out, and that it runs under any folder name."""

from __future__ import annotations

import json
import zipfile
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from wanexperts.comfy_server import ROOT, Host
from wanexperts.tests.archive import archived

from .checkouts import CHECKOUTS

pytestmark = pytest.mark.comfy
FOLDER = "Wan Experts {v0.1} 100%"
LEFT_OUT = ("tests/", "benchmarks/", ".ci/", ".github/")
MEGABYTES = 15


@pytest.fixture(scope="module")
def names():
    return archived()


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


@pytest.mark.parametrize("checkout", CHECKOUTS, ids=lambda path: path.name)
@pytest.mark.parametrize("folder", [FOLDER, "ComfyUI-WanExperts-0.1.0"])
def test_all_of_it_works_under_a_name_with_spaces_and_dots(unpacked, checkout, folder):
    with Host(checkout, pack=unpacked, folder=folder) as host:
        loader = host.get("/object_info/WanExpertsLoader")["WanExpertsLoader"]
        choices = str(loader["input"]["required"]["model_high_noise"])
        assert "wan_tiny_t2v_high_noise.safetensors" in choices
        words = host.get("/i18n")
        assert words["zh"]["nodeDefs"]["WanExpertsSampler"]["display_name"] == "Wan 双专家采样"
        assert "wan_tiny_t2v" in host.get("/workflow_templates")[folder]
        scripts = [name for name in host.get("/extensions") if quote(folder) in name]
        assert len(scripts) == len(list((unpacked / "web" / "js").iterdir()))
        for script in scripts:
            assert (
                fetched(host, script)
                == (unpacked / "web/js" / script.rpartition("/")[2]).read_bytes()
            )
        # As the frontend takes the name out of "custom_nodes.<folder>".
        pages = f"/extensions/{quote(folder.partition('.')[0])}/docs"
        assert fetched(host, f"{pages}/WanExpertsSampler/zh.md").decode().startswith("# Wan 双")
        templates = f"/api/workflow_templates/{quote(folder)}"
        assert "nodes" in json.loads(fetched(host, f"{templates}/wan_tiny_t2v.json"))
        assert fetched(host, f"{templates}/wan_tiny_t2v.jpg")[:2] == b"\xff\xd8"
        for outside in ("/..%2f__init__.py", "/docs/..%2f..%2f__init__.py", "/docs", "/gone.js"):
            with pytest.raises(HTTPError, match=r"40[34]"):
                fetched(host, f"/extensions/{quote(folder)}{outside}")


def fetched(host, path):
    with urlopen(f"http://{host.url}{path}", timeout=30) as answer:
        return answer.read()
