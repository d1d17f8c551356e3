"""Start the processes of a run: on this machine, or join those that torchrun started."""
