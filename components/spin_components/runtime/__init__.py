"""How a step runs: the step protocol, processes, KFP's artifacts."""
