"""Engines that sample answers: vLLM and transformers behind one interface."""
