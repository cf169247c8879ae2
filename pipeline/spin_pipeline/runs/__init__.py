"""Commands on finished and running runs: status, export, comparison, garbage collection, reproduction."""
