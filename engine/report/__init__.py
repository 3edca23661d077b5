"""The typed report of a job, and every format that it is written in."""
