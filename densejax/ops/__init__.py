"""The few operations that the field's compilers do badly, with gradients and batching rules."""
