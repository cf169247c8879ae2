"""LoRA adapters: their files, their layers, merging."""
