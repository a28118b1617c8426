"""How questions come in from elsewhere: over HTTP, and by models of a server."""
