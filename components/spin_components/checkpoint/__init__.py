"""Close an iteration: choose its policy, publish it, decide whether to go on."""
