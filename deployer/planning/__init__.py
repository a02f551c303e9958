"""What would be done and what it would cost: plans, who makes them, their way back, their signatures."""
