"""One file per compile target: what each op becomes there."""
