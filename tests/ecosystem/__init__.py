"""Public model servers, as their projects publish them, through all verbs: `make ecosystem`."""
