"""Commands that show what flipscale knows: `flipscale show ...`."""
