"""The child process: loads one backend, generates, stamps tokens. No pytest here, and torch only through a backend."""
