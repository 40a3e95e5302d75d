"""Looking before and after: plan, preview, inspect, export."""
