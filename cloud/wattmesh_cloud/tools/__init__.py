"""The five tool services as plain typed functions."""
