"""The ground room: errors, files, seeds, stop requests, locks, ranks, devices; what any room above may use."""
