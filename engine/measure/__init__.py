"""What a network costs and how well it does, measured so that the numbers can be trusted."""
