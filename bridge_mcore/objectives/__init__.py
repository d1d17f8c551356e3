"""Objectives as pure tensor functions: no megatron, no engine."""
