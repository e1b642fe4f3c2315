"""The command ``vitpos``."""
