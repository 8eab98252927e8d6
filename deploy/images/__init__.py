"""Reference model servers, built into images; not part of the installed package."""
