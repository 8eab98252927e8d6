"""A worker drives the containers of one host: it takes commands and reports what became of them."""
