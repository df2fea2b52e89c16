"""The correction loop: blocks given to annotators, taken back, trained on."""
