"""What is measured on: the device table, detection, the machine's fingerprint and its state while measuring."""
