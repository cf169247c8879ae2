"""The commands of `spin-pipeline`: one module each, with `add` for the parser and the function that it calls.

Top-level imports are limited to light modules; a command imports the others when it runs.
"""
