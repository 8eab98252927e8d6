"""The dispatcher takes requests in, places them on hosts and records what the hosts report."""
