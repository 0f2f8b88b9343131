"""An open loop of prepared requests, in a process of its own that gives way to the server."""
