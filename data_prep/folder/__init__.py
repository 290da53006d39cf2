"""Reader of any folder of scans, one file a layout."""
