"""How a sweep reaches the machines it runs on; knows experiments by their modules and folders."""
