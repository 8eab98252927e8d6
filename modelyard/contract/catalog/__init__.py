"""The catalog's entries, models and datasets, and the rules that they follow."""
