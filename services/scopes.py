"""What a key may be allowed, and the tenant of whom nobody says otherwise: words that the command line knows without a database."""

DEFAULT_TENANT = "default"
SCOPES = ("read", "write", "admin", "metrics", "operator")
