"""Runs as a person asks for them: status, export, comparison, garbage, reproduction."""
