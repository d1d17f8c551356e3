"""The command line `bridge-mcore`: one file per command. Nothing here imports torch at module level."""
