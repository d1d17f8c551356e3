"""The weights that are trained, in the engine that generates."""
