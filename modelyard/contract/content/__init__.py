"""What models answer besides JSON: media types, and content with its type."""
