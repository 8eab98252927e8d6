"""The container engine: its protocol, container plans, labels and image references."""
