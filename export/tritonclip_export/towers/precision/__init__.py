"""Numbers of 16 and 8 bits for the served towers; docs/precision.md says what runs in which, and why."""
