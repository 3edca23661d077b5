"""What the service costs beside the engine alone."""
