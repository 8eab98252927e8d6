"""Whether Modelyard works with newer servers than those of this machine."""
