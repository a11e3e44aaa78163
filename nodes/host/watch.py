"""Watching a run: one bar, the stage and the time left in words, and a sheet of frames that shows motion."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import comfy.utils
import latent_preview
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm.auto import tqdm

from ...wan.cost import duration
from ...wan.guidance import needs_uncond
from ...wan.plan import RunPlan
from ...wan.solvers import evaluated
from . import compat

DECODED_FRAMES = 4
COLOUR_FRAMES = 9
"""Frames on a sheet: decoded ones are large and cost time, latents as colours are small and cost none."""
COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2, 6: 3, 9: 3}
"""Frames on a sheet without holes -> its columns."""
ONE_CALL = "euler"
"""A solver that evaluates once a step, for those that are not known."""
RECENT = 5
"""Steps that tell how fast a run is; earlier ones may have loaded weights or compiled."""
PAPER, INK = "#17191d", "#eef0f3"


class Pace:
    """How fast a run goes, in words. Time left follows from calls of the network: a guided step is two."""

    def __init__(
        self,
        plan: RunPlan,
        solver: str = ONE_CALL,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The run of ``plan`` begins now; ``solver`` (a key of ``SOLVERS``) says how often a step evaluates."""
        self.total = plan.schedule.steps
        self._plan, self._clock = plan, clock
        self._calls = [_calls(plan, solver, step) for step in range(self.total)]
        self._seconds: list[float] = []
        self._going = False
        self._started = self._last = clock()

    def done(self, step: int) -> str:
        """Words after ``step`` (from 0); samplers that choose their own steps may go beyond the plan."""
        step, now = min(step, self.total - 1), self._clock()
        if step == 0 or self._going:  # else a run that goes on tells first where it was
            self._seconds.append((now - self._last) / self._calls[step])
        self._last, self._going = now, True
        return self.words(step + 1)

    def words(self, done: int) -> str:
        """``high noise 3/20, 2 min 10 s left``."""
        if done == self.total:
            return f"{done}/{done}, took {duration(self._clock() - self._started)}"
        told = f"{self.stage(done)} {done}/{self.total}"
        if not self._seconds:
            return told
        left = sum(self._calls[done:]) * median(self._seconds[-RECENT:])
        return f"{told}, {duration(left)} left"

    def stage(self, done: int) -> str:
        """Name of the stage under way when ``done`` steps are done, or of the last one."""
        return self._plan.stages[self._plan.stage_at(min(done, self.total - 1))].name

    @property
    def seconds_per_call(self) -> float | None:
        """Of the network, as most steps were; None before the first."""
        return median(self._seconds) if self._seconds else None


class Watch:
    """A sampler's callback: ``(step done, from 0; prediction; latents; total)``."""

    def __init__(self, plan: RunPlan, solver: str, previewer: Any, *, quiet: bool) -> None:
        """Show 0 of N while the first weights are loaded.

        ``previewer`` is ComfyUI's or None, ``quiet`` leaves the terminal alone.
        """
        self.pace, self._previewer = Pace(plan, solver), previewer
        self._bar = comfy.utils.ProgressBar(self.pace.total)
        # Not before the first step: until then the log has the terminal.
        self._line = tqdm(total=self.pace.total, disable=quiet, delay=1e-3, mininterval=0)
        self._bar.update_absolute(0)
        compat.show_text(self.pace.words(0))

    def __call__(self, step: int, x0: Tensor, x: Tensor, total: int) -> None:
        """Tell of a step that is done; raises when the run was interrupted."""
        del x
        words = self.pace.done(step)
        self._line.set_description(self.pace.stage(step + 1), refresh=False)
        self._line.update(step + 1 - self._line.n)
        compat.show_text(words)
        sheet = None
        if self._previewer is not None:
            sheet = captioned(preview_sheet(self._previewer, x0), words)
        self._bar.update_absolute(step + 1, total, sheet)

    def close(self) -> None:
        """Leave the terminal."""
        self._line.close()


def with_words(plan: RunPlan, callback: Any) -> Any:
    """The callback of another node, which has a bar and previews of its own, with words beside them."""
    if callback is None or isinstance(callback, Watch):
        return callback
    pace = Pace(plan)
    compat.show_text(pace.words(0))

    def told(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        compat.show_text(pace.done(step))
        callback(step, x0, x, total)

    return told


def _calls(plan: RunPlan, solver: str, step: int) -> int:
    return sum(
        1 + needs_uncond(plan.stages[plan.stage_of(level)].guidance.at(level))
        for level in evaluated(solver, plan.schedule.sigmas, step)
    )


def preview_sheet(previewer: Any, x0: Tensor) -> tuple[str, Image.Image, int]:
    """Latent frames of the first clip, from first to last, as ComfyUI's preview of one image."""
    flat = isinstance(previewer, latent_preview.Latent2RGBPreviewer)
    chosen, columns = _layout(x0.shape[2], COLOUR_FRAMES if flat else DECODED_FRAMES)
    if flat:
        # Every position is a colour of its own, so frames can be laid out before: one transfer.
        tiled = rearrange(x0[0][:, chosen], "c (r n) h w -> 1 c 1 (r h) (n w)", n=columns)
        found: tuple[str, Image.Image, int] = previewer.decode_latent_to_preview_image(
            "JPEG", tiled
        )
        return found
    shots = [previewer.decode_latent_to_preview_image("JPEG", x0[:1, :, i : i + 1]) for i in chosen]
    _, first, largest = shots[0]
    sheet = Image.new("RGB", (columns * first.width, len(shots) // columns * first.height))
    for index, (_, image, _) in enumerate(shots):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * first.width, row * first.height))
    return "JPEG", sheet, largest


def _layout(count: int, most: int) -> tuple[list[int], int]:
    """Frames that fill a sheet, evenly from the first of ``count`` to the last, and its columns."""
    shown = max(tiles for tiles in COLUMNS if tiles <= min(count, most))
    return [round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)], COLUMNS[shown]


def captioned(preview: tuple[str, Image.Image, int], words: str) -> tuple[str, Image.Image, int]:
    """A preview with ``words`` in a strip below, in the size at which ComfyUI sends it.

    ComfyUI enlarges previews: letters that were drawn before would be blurred.
    """
    kind, image, largest = preview
    size = max(11, largest // 28)
    strip = 2 * size
    scale = min(largest / image.width, (largest - strip) / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    sheet = Image.new("RGB", (width, height + strip), PAPER)
    sheet.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    font, room = _font(size), width - size
    while font.getlength(words) > room and size > 8:
        size -= 1
        font = _font(size)
    middle = width / 2, height + strip / 2
    ImageDraw.Draw(sheet).text(middle, words, fill=INK, font=font, anchor="mm")
    return kind, sheet, largest


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
