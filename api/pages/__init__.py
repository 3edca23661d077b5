"""What a browser shows: pages made on the server, for people who would rather look."""
