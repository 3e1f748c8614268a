"""What the lesson stands on: files, refusals, hardware, the Hub."""
