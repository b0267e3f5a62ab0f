"""Networks from files, hubs and names."""
