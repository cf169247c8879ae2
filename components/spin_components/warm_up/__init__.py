"""Supervised fine-tuning on the human answers before self-play."""
