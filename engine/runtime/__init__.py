"""Online: engine directory -> answers."""
