"""A report about an evaluation, as one HTML file or as Markdown."""
