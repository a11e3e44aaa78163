"""ComfyUI's page in a tab: what a person does with it, and what its console told."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Error, Page, Route
from wanexperts.comfy_server import ROOT, Host, HostError, Refused

PATIENCE, RESTORED = 60.0, 15.0
"""Seconds after which a run or a page has failed, and a file has brought no graph."""
OPEN_GRAPH = (
    "() => window.app?.extensionManager?.workflow?.activeWorkflow && app.graph._nodes.length"
)
NOT_OURS = re.compile(
    # What a fresh server has not got: settings of a person, thumbnails, workflow templates.
    r"status of 404 .*at (?!.*(?:WanExperts|/view\?))"
    r"|Error (?:loading|fetching) .*(?:templates|fuse options)"
    # Sizes of missing models and names of missing packs are asked of the network, which tests have not.
    r"|https://(?:huggingface\.co|api\.comfy\.org)/|Error fetching file size"
    # Frontend 1.27 while it starts, on an empty canvas too.
    r"|reading 'id'\).*addSetting|reading 'name'\).*tz\.fn",
    re.DOTALL,
)
"""Errors that a ComfyUI without this pack tells as well."""
SCREENSHOTS = ROOT / ".test" / "screenshots"
"""Where tests leave pictures to be looked at."""
DRAG = ("dragEnter", "dragOver", "drop")


def _whole(route: Route) -> None:
    """Add the core node that needs a package no test machine has: frontend 1.27 draws no VAELoader without."""
    known = route.fetch().json()
    name = "UpscaleModelLoader"
    route.fulfill(json={name: {**known["StyleModelLoader"], "name": name}, **known})


class Canvas:
    """A tab with the frontend of ``host``.

    Attributes:
        page: the tab.
        host: the server behind it.
        errors: what went wrong in it so far and is not in :data:`NOT_OURS`.
    """

    def __init__(self, page: Page, host: Host) -> None:
        self.page, self.host = page, host
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", self._told)
        page.on("pageerror", self._thrown)

    def open(self) -> None:
        """Load the page and wait for the default workflow."""
        self.page.route("**/object_info", _whole)
        self.page.route("**/templates/index*.json", lambda route: route.fulfill(json=[]))
        self.page.goto(f"http://{self.host.url}/")
        self.page.wait_for_function(OPEN_GRAPH)

    def load(self, workflow: Mapping[str, Any]) -> None:
        """Open a workflow in UI format."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def clear(self) -> None:
        """Remove every node."""
        self.page.evaluate("() => app.graph.clear()")

    def set_widget(self, node_id: int, name: str, value: object) -> None:
        """Give a widget another value, as its own control does."""
        self.page.evaluate(
            """([id, name, value]) => {
              const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
              widget.value = value;
              widget.callback?.(value);
            }""",
            [node_id, name, value],
        )

    def workflow(self) -> dict[str, Any]:
        """What Save would write: the graph in UI format."""
        graph: dict[str, Any] = self.page.evaluate("() => app.graph.serialize()")
        return graph

    def prompt(self) -> dict[str, Any]:
        """What Run would send: the graph in API format."""
        graph: dict[str, Any] = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return graph

    def queue(self) -> dict[str, Any]:
        """Press the keys for Run and wait for the end; returns the outputs by node id.

        Raises:
            Refused: the graph was not accepted.
            HostError: a node failed, or the run did not end.
        """
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as posted:
            self.page.keyboard.press("Control+Enter")
        answer = posted.value.json()
        if answer["node_errors"]:
            raise Refused(answer)
        run, end = answer["prompt_id"], time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if entry := self.host.get(f"/history/{run}").get(run):
                if not entry["status"]["completed"]:
                    raise HostError(str(entry["status"]["messages"]))
                outputs: dict[str, Any] = entry["outputs"]
                return outputs
            self.page.wait_for_timeout(50)
        raise HostError(f"no run ended in {PATIENCE} s:\n{self.host.log_tail()}")

    def drop(self, file: Path, x: int = 700, y: int = 450) -> None:
        """Drag a file from the desktop and let it fall."""
        devtools = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in DRAG:
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        devtools.detach()

    def restore(self, file: Path) -> None:
        """Drop a file onto an empty canvas and wait for the graph in it."""
        self.clear()
        self.drop(file)
        self.page.wait_for_function("() => app.graph._nodes.length", timeout=RESTORED * 1000)

    def screenshot(self, name: str) -> None:
        """Keep what is seen as ``name.png``."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def _told(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._collect(f"{message.text} at {message.location['url']}")

    def _thrown(self, error: Error) -> None:
        self._collect(f"{error.message}\n{error.stack}")

    def _collect(self, told: str) -> None:
        if not NOT_OURS.search(told):
            self.errors.append(told)
