"""One history of the tables, for SQLite and Postgres."""
