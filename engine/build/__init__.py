"""Offline: checkpoints -> graphs -> engine directory."""
