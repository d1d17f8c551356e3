"""HF and PEFT import and export; checkpoints of a run."""
