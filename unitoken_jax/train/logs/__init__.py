"""What a run tells about itself: metrics, speeds, samples, skipped steps, traces, where they are kept."""
