"""Images: what the bytes of a file say about it, before a library decodes them."""
