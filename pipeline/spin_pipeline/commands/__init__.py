"""The commands of `spin-pipeline`: a module each, with `add(commands)` and what it does.

A module's top-level imports stay light; what a command needs is imported when it runs.
"""
