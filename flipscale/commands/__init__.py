"""What the commands do between parsing and printing; imported only when a command runs."""
