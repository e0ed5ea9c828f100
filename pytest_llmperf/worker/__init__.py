"""The child process: loads one backend, generates, stamps tokens. Imports no pytest, and torch only through a backend."""
