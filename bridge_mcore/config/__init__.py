"""Configurations: the schema, reading and writing them, and every check that needs no heavy import."""
