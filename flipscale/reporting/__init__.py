"""Pages for people: one run, or models beside each other; one HTML file each, that works offline."""
