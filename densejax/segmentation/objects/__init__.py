"""Single objects of a labelled volume: components out of core, and a table of them."""
