"""A pair of miniature models, trained from scratch on synthetic scenes and saved in the published InternVL2 format."""
