"""First step: check everything, render the data once, record what the run is made of."""
