"""Web searches at the provider, as the Messages API's server tool `web_search_20250305` makes them.

The model is run anew after each search, on all that was found so far: so its input is counted once for each run, and
each run may write `max_tokens`. Of searches beyond `max_uses` there is an error, which is not billed.
"""

from __future__ import annotations

import re
import uuid

from autovibe_lab.model.tools import Block

#: So often the provider runs the model in one call before it pauses (documented).
RUNS = 10
#: "Search the web for X", "Search the web 3 times for X".
_ASKED = re.compile(r"\bsearch the web(?: (\d{1,3}) times)?(?: for (.{1,200}))?", re.I)
_PAGE = "What the demo model's web says of it. " * 40


def asked(prompt: str, allowed: int) -> list[Block]:
    """The blocks of the searches that the prompt asks for, of which so many are allowed."""
    found = _ASKED.search(prompt)
    if found is None:
        return []
    wanted = min(int(found[1] or 1), RUNS - 1)
    return [block for number in range(wanted) for block in _search(found[2] or "news", number < allowed)]


def _search(query: str, allowed: bool) -> tuple[Block, Block]:
    uses = f"srvtoolu_demo_{uuid.uuid4().hex[:12]}"
    page = {"type": "web_search_result", "url": "https://demo.invalid/", "title": query, "encrypted_content": _PAGE}
    error = {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}
    return (
        {"type": "server_tool_use", "id": uses, "name": "web_search", "input": {"query": query}},
        {"type": "web_search_tool_result", "tool_use_id": uses, "content": [page] if allowed else error},
    )


def results(blocks: list[Block]) -> list[Block]:
    return [block for block in blocks if block["type"] == "web_search_tool_result"]


def billed(blocks: list[Block]) -> int:
    """How many searches are."""
    return sum(isinstance(block["content"], list) for block in results(blocks))


def cited(text: str) -> Block:
    where = {"type": "web_search_result_location", "url": "https://demo.invalid/", "cited_text": text[:100]}
    return {"type": "text", "text": text, "citations": [where | {"title": "demo", "encrypted_index": "demo"}]}
