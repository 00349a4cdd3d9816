"""The pages of `flipscale report` (one run) and `flipscale compare` (several models).

Each page is one HTML file that works offline, with the same content as Markdown and JSON next to it.
"""
