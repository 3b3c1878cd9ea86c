"""What everything stands on: errors, files, folders, terminal output, and checks of what users hand in."""
