"""Faults, overload and hostile input against a served repository, and the page that tells what came of them.

A *campaign* does something to a server and yields *records*; `runner` writes the records of one campaign to one JSON
file, and `page` makes docs/reliability.md of those files.
"""
