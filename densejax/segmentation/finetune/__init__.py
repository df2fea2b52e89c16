"""Training on with corrections: blocks given to an annotator, taken back, and learnt from."""
