"""Keeps a server up: watches its Python models and itself, revives what died or hangs, and tells of it."""
