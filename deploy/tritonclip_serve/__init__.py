"""Starts a real tritonserver over an exported model repository, and stops it with everything it started."""
