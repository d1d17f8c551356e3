"""The box that candidate programs run in; see :mod:`bridge_mcore.rewards.sandbox`. Standard library only."""
