"""One HTML page that shows and compares runs, without a server or an account."""
