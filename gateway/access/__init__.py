"""Access: authenticates clients by API keys and checks their scopes."""
