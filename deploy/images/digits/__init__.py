"""A model server that reads handwritten digits; in the image this package is `digits`."""
