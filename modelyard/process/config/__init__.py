"""Configuration besides the environment: a TOML file, files of secrets, origins and masks."""
