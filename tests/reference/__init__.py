"""An independent float64 implementation of one BRIDGE update, and the cases it is compared on."""
