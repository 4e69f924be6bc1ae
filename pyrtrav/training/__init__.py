"""Training from a folder or a table of labelled images; only attended tiles are decoded here too."""
