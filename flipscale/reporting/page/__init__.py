"""The building blocks of a page, and the renderers that write it as HTML, Markdown and JSON."""
