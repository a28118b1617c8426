"""One file per compile target."""
