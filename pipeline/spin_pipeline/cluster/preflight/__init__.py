"""What a cluster must have before a run is submitted: a module a subject, each a generator of findings."""
