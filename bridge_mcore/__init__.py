"""bridge-mcore: BRIDGE (cooperative SFT and RL) on Megatron-Core."""

__version__ = "0.1.0"
