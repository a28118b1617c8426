"""An OpenAI-compatible server over one pipeline, and a page that shows what was looked at."""
