"""The LiteLLM proxy, for a comparison: from PyPI in an environment of its own, before the same stand-in provider."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

VERSION = "litellm[proxy]>=1.106,<2"
KEY = "sk-bench"


def environment() -> Path:
    """The folder with its programs, installed at the first call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe" / "bench-litellm"
    if not (cache / "bin" / "litellm").exists():
        print("installing LiteLLM into the cache (some minutes, once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", cache], check=True)
        subprocess.run([cache / "bin" / "pip", "install", "-q", VERSION], check=True)
    return cache / "bin"


@contextlib.contextmanager
def proxy(
    folder: Path, model: str, provider_url: str, provider_key: str, budget_usd: float, port: int
) -> Iterator[str]:
    """A proxy with one model and its global budget on, without a database; its URL."""
    parameters = {
        "model": f"anthropic/{model}",
        "api_base": provider_url,
        "api_key": provider_key,
        "input_cost_per_token": 2e-6,
        "output_cost_per_token": 10e-6,
    }
    config = {
        "model_list": [{"model_name": model, "litellm_params": parameters}],
        "litellm_settings": {"max_budget": budget_usd, "budget_duration": "30d", "telemetry": False},
        "general_settings": {"master_key": KEY},
    }
    path = folder / f"litellm-{port}.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
    command = [environment() / "litellm", "--config", path, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / f"litellm-{port}.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=env)
    try:
        _wait(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError("the LiteLLM proxy did not start; see its log")
