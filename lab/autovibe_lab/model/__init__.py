"""The demo model: a small server that plays an AI provider, for runs without a provider's key.

It speaks Anthropic's Messages API and OpenAI's chat completions. It is not a language model: a script (`script.py`)
answers a few known prompts well enough for Claude Code, qwen-code or aider to write a small program, test it and extend
it; every other prompt gets a text that says so. `python -m autovibe_lab.model` serves it over plain HTTP on loopback;
it keeps its own bill (`GET /bill`), so that a ledger can be checked against it.
"""

from autovibe_lab.model.server import create_app

__all__ = ["create_app"]
