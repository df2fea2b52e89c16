"""The task protocol, the loop, the sweep over slots, checkpoints and logs."""
