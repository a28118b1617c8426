"""How questions come in from elsewhere: the models of servers."""
