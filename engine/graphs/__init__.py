"""What engines are declared with: graphs from their bindings, and the layers that more than one of them has."""
