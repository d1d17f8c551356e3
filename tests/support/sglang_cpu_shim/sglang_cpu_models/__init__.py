"""TEST SUPPORT: the model families bridge-mcore trains, for SGLANG_EXTERNAL_MODEL_PACKAGE (see sglang_cpu_shim.py)."""
