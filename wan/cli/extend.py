"""A prompt made longer by a language model of the user's choice; nothing is sent unless one is named."""

from __future__ import annotations

import argparse
import http.client
import json
import os

from ..files import shown
from ..queue import Address, parse_address

INSTRUCTIONS = (
    "You write prompts for a text-to-video model. Rewrite the user's text as one paragraph of 80 to 120 "
    "words in the language it is written in. Keep every fact, name, number and quoted text. Add what is "
    "missing of: how the subject looks, what it does from the first to the last second, the place, the "
    "light, the framing and one camera movement. Describe only what can be seen. Answer with the "
    "paragraph alone."
)
TIMEOUT = 120.0
"""Seconds; a local model may have to be loaded first."""
LARGEST = 1 << 20
"""Bytes of an answer."""
MOST_LETTERS = 4000
"""Of a prompt; 512 tokens are read of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the model is and what it is called."""
    group = parser.add_argument_group("prompt extension (off by default; nothing is sent then)")
    group.add_argument(
        "--extend-prompt", metavar="URL",
        help="OpenAI-compatible endpoint, such as http://127.0.0.1:11434/v1, that rewrites the prompt",
    )  # fmt: skip
    group.add_argument("--extend-model", metavar="NAME", help="its model")
    group.add_argument(
        "--extend-key-env", metavar="VARIABLE", help="environment variable with its API key"
    )


def extended(given: argparse.Namespace) -> str:
    """The prompt to use: as given, or as the model of ``--extend-prompt`` rewrites it.

    Raises:
        ValueError: the endpoint is named without its model, or its answer is no prompt.
        OSError: it does not answer.
    """
    prompt: str = given.prompt
    if given.extend_prompt is None:
        if given.extend_model or given.extend_key_env:
            raise ValueError("--extend-prompt is missing: give the URL of the model's endpoint")
        return prompt
    if not given.extend_model:
        raise ValueError("--extend-model is missing: give the name of the model to ask")
    key = None
    if given.extend_key_env is not None:
        key = os.environ.get(given.extend_key_env, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {given.extend_key_env} is empty; put the API key there"
            )
    address = parse_address(given.extend_prompt, f"Bearer {key}" if key else None)
    return ask(address, given.extend_model, prompt)


def ask(address: Address, model: str, prompt: str) -> str:
    """The ``prompt`` as ``model`` rewrites it; see :func:`extended` for errors."""
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": prompt},
        ],
        "temperature": 0.7,
        "stream": False,
    }
    told = _post(address, json.dumps(body).encode())
    try:
        text: str = json.loads(told)["choices"][0]["message"]["content"]
        text = " ".join(text.rpartition("</think>")[2].split())  # some models think aloud first
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{address} does not answer as an OpenAI-compatible chat does; give its URL up to /v1"
        ) from error
    if not 0 < len(text) <= MOST_LETTERS:
        raise ValueError(
            f"the model {shown(model)} answered with {len(text)} letters, which is no prompt; use another"
        )
    return text


def _post(address: Address, data: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    if address.authorization:
        headers["Authorization"] = address.authorization
    link = address.http(TIMEOUT)
    try:
        link.request("POST", f"{address.base}/chat/completions", data, headers)
        answer = link.getresponse()
        told = answer.read(LARGEST)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"{address} does not answer ({shown(error)}); start it, or leave out --extend-prompt"
        ) from error
    finally:
        link.close()
    if answer.status != 200:
        raise ValueError(f"{address} refuses (status {answer.status}): {shown(_reason(told))}")
    return told


def _reason(told: bytes) -> str:
    """What an endpoint says of an error, where it says it as others do."""
    try:
        return str(json.loads(told)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "check its URL, model and key"
