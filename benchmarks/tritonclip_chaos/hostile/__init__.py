"""Hostile input, seeded: mutated images, pathological texts, malformed KServe requests."""
