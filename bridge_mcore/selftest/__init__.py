"""`bridge-mcore selftest`: whether every layout computes the same update on this machine, before any real run."""
