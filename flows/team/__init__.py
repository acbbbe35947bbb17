"""What a team shares: servers, and what they do by themselves."""
