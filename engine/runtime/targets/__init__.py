"""One file for each library that runs engines, behind `engine.runtime.backend`."""
