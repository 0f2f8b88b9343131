"""Coverage-guided fuzzing of the project's own parsers: `python -m tritonclip_chaos.fuzzing TARGET --seconds N`."""
