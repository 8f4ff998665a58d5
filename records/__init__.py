"""What runs leave behind: records, their visits and where they come from; harness and reports stand on it."""
