"""What the commands of `regraft` do and say, a file each; flows are not among them."""
