"""What repairs, retries and moves work: everything that is not the straight road."""
