"""The commands of `flipscale data`."""
