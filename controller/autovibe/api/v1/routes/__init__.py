"""The paths of /api/v1, one module per noun."""

PREFIX = "/api/v1"
