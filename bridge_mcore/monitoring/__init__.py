"""What a run says about itself: metrics on disk, live progress, and the report with its figure."""
