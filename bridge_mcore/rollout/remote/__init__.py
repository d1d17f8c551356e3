"""Rollouts from SGLang and vLLM servers over HTTP."""
