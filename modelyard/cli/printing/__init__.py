"""What the command line prints, and how: tables, single things, results, errors."""
