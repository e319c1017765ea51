"""The hub's HTTP API. The modules here parse, call and show; what things mean is in the modules they call."""
