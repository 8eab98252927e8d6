"""`make bench-containers`: real containers through Modelyard, beside the same calls alone."""
