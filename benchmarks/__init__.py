"""Speed and memory beside other programs; each benchmark writes a JSON record."""
