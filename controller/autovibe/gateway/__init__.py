"""The AI gateway: machines talk to it as if it were the provider, and never see the provider's key.

Per call: the machine's token (`routes.py`), only fields with a bounded cost (`fields.py`, `requests.py`), the worst
case reserved (`reserving.py`), forwarded with the hub's key (`upstream.py`), streamed through and metered
(`calls.py`, `metering.py`), settled.
"""

from autovibe.gateway.routes import Gateway, gateway_of, router

__all__ = ["Gateway", "gateway_of", "router"]
