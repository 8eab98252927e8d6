"""The containers of this host's jobs, from creation to removal, with their images and datasets."""
