"""The server under test: its process tree, its private file systems, its memory."""
