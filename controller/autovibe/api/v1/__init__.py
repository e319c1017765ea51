"""/api/v1: what people and their programs talk to. Machines never reach it: it has a listener of its own."""
