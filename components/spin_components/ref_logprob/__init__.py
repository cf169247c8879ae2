"""Score both answers of every pair under the frozen reference, once an iteration."""
