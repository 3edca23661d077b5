"""What a report shows as pictures: figures in Plotly's JSON, each with its words and its numbers as a table."""
