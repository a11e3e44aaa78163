"""Videos in a page: whether they play, and their frames as the browser shows them."""

from __future__ import annotations

import base64
from pathlib import Path

import torch
from playwright.sync_api import Locator, Page
from torch import Tensor

_OPEN = """async data => {
  const bytes = await (await fetch('data:video/mp4;base64,' + data)).blob();
  document.body.innerHTML = '<video>';
  document.querySelector('video').src = URL.createObjectURL(bytes);
}"""
_PLAY = """async video => {
  const event = name => new Promise((done, fail) => {
    video.addEventListener(name, done, {once: true});
    video.addEventListener('error', () => fail(new Error(video.error.message)), {once: true});
  });
  if (video.error) throw new Error(video.error.message);
  if (video.readyState < 1) await event('loadedmetadata');
  video.muted = true;
  const from = video.currentTime;
  await video.play();
  while (!video.ended && video.currentTime < from + 0.3) await event('timeupdate');
  video.pause();
  return {width: video.videoWidth, height: video.videoHeight, duration: video.duration,
          advanced: video.currentTime - from, sound: video.webkitAudioDecodedByteCount};
}"""
_DRAW = """async (video, seconds) => {
  const there = new Promise(done => video.addEventListener('seeked', done, {once: true}));
  video.currentTime = seconds;
  await there;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0);
  return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def show(page: Page, file: Path) -> Locator:
    """A ``<video>`` of a file, alone in the page."""
    page.evaluate(_OPEN, base64.b64encode(file.read_bytes()).decode())
    return page.locator("video")


def play(video: Locator) -> dict[str, float]:
    """Play a ``<video>`` for a moment: its size, seconds, how far it came, and bytes of sound."""
    told: dict[str, float] = video.evaluate(_PLAY)
    return told


def frame_at(video: Locator, seconds: float) -> Tensor:
    """What is seen at that time, (H, W, 3) uint8."""
    width, height = video.evaluate("video => [video.videoWidth, video.videoHeight]")
    pixels = torch.tensor(video.evaluate(_DRAW, seconds), dtype=torch.uint8)
    return pixels.view(height, width, 4)[..., :3]
